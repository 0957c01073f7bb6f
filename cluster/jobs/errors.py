# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between a claimed job and its sealed bundle.

Tree::

    ClusterError
    └── JobsError
        ├── DatasetChanged      the stored documents are not those that the job was submitted for
        ├── WorkFolderBusy      an earlier attempt still holds the work folder
        ├── WorkshopGone        a workshop's process has ended, or its node has
        └── ForeignBundle       the child packed something else than what the job asked for
"""

from __future__ import annotations

from cluster.errors import ClusterError


class JobsError(ClusterError):
    """Family of the workshops' trusted side."""

    code = "jobs"


class DatasetChanged(JobsError):
    """The stored documents are not those that the job was submitted for."""

    code = "dataset_changed"


class WorkFolderBusy(JobsError):
    """An earlier attempt still holds the work folder."""

    code = "work_folder_busy"


class WorkshopGone(JobsError):
    """A workshop's process has ended, or its node has."""

    code = "workshop_gone"


class ForeignBundle(JobsError):
    """The child packed something else than what the job asked for."""

    code = "foreign_bundle"
