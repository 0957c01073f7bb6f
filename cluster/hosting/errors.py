# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while hosting.

Tree::

    ClusterError
    └── HostingError
        ├── JournalDamaged          the usage journal cannot be written or read
        ├── LeaseLost               no news from the register for too long; nothing may be released
        ├── RequestStopped          the request's key, tenant or budget is gone
        ├── DeploymentNotHosted     this host does not (or no longer) run the deployment
        ├── ExpertsNotLoaded        the composition's experts are still being loaded
        ├── ExpertsDoNotFit         the composition's experts are larger than the memory for experts
        ├── PromptRefused           too long, empty, or in a form this base cannot read
        ├── HostStopping            the host is shutting down
        ├── HostOverloaded          the queue is full
        ├── ReplicaLost             the replica that answered is gone; another one can go on
        └── EpochRefused            the register answered with a lower epoch or another snapshot
"""

from __future__ import annotations

from cluster.errors import ClusterError


class HostingError(ClusterError):
    """Family of the model hosts."""

    code = "hosting"


class JournalDamaged(HostingError):
    """The usage journal cannot be written or read."""

    code = "journal_damaged"


class LeaseLost(HostingError):
    """The register has not answered for too long; the host may release nothing."""

    code = "lease_lost"


class RequestStopped(HostingError):
    """The request may not be answered any more: its key, its tenant or its money is gone."""

    code = "request_stopped"


class DeploymentNotHosted(HostingError):
    """The host does not run this deployment."""

    code = "deployment_not_hosted"


class ExpertsNotLoaded(HostingError):
    """The composition's experts are still being loaded; ask again when they are."""

    code = "experts_not_loaded"


class ExpertsDoNotFit(HostingError):
    """The composition's experts together are larger than what a host may hold."""

    code = "experts_do_not_fit"


class PromptRefused(HostingError):
    """The prompt does not fit this base."""

    code = "prompt_refused"


class HostStopping(HostingError):
    """The host is shutting down."""

    code = "host_stopping"


class HostOverloaded(HostingError):
    """The host's queue is full."""

    code = "host_overloaded"


class EpochRefused(HostingError):
    """The register answered with a lower epoch or with a snapshot that is not what its digest says."""

    code = "epoch_refused"


class ReplicaLost(HostingError):
    """The replica that answered has ended, was paused or cannot be reached."""

    code = "replica_lost"
