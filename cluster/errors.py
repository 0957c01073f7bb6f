# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the cluster floor.

How an error of any floor looks over HTTP and to a shell is in ``cluster.problems``.

Tree::

    ProductError
    └── ClusterError
        ├── RequestRefused
        │   ├── InvalidRequest          a document that does not validate
        │   ├── UnknownOperation        no such operation or route
        │   ├── RoleRequired            the principal lacks the role
        │   ├── TooLarge                the body is larger than this installation accepts
        │   └── UnsupportedBody         a media type or file format nobody reads here
        ├── OfficeUnavailable           the office does not answer; what was asked may not have happened
        ├── OfficeFault                 something unexpected happened in the office
        ├── WeighingFailed              an expert could not be weighed here; it was not admitted
        ├── HostUnavailable             no model host answers for this base
        ├── InstallationRefused
        │   ├── HomeRefused             the home folder is not safe
        │   ├── AlreadyRunning          another marketplace runs from this home
        │   └── SecondNodeRefused       more than one node needs PostgreSQL
        ├── StartFailed                 a part did not come up in time
        ├── NotRunning                  no marketplace runs from this home
        ├── GatewayUnreachable          nobody answers at the address (client side)
        ├── UnknownField                an answer lacks the field that --only names (client side)
        └── RemoteProblem               a problem document whose code this version does not know
"""

from __future__ import annotations

from typing import Any, Self

from model_core.errors import ProductError


class ClusterError(ProductError):
    """Family of the cluster floor."""

    code = "cluster"


class RequestRefused(ClusterError):
    """Family of refusals at the door, before any work was done."""

    code = "refused_at_the_door"


class InvalidRequest(RequestRefused):
    """The request document does not validate; ``facts["fields"]`` says where."""

    code = "invalid_request"


class UnknownOperation(RequestRefused):
    """There is no such operation or route."""

    code = "unknown_operation"


class RoleRequired(RequestRefused):
    """The principal has none of the roles that this operation asks for."""

    code = "role_required"


class TooLarge(RequestRefused):
    """The body is larger than this installation accepts."""

    code = "too_large"


class UnsupportedBody(RequestRefused):
    """The body has a media type or file format that nobody reads here."""

    code = "unsupported_body"


class ExportRefused(ClusterError):
    """The register does not let this composition leave as weights; ``facts["codes"]`` says why."""

    code = "export_refused"


class OfficeUnavailable(ClusterError):
    """The office did not answer; a write without an idempotency key may or may not have happened."""

    code = "office_unavailable"


class OfficeFault(ClusterError):
    """Something unexpected happened in the office; its log says more."""

    code = "office_fault"


class WeighingFailed(ClusterError):
    """An expert could not be weighed here (time, memory, a base that cannot be read); it was not admitted."""

    code = "weighing_failed"


class HostUnavailable(ClusterError):
    """No model host answers for the base that the deployment needs."""

    code = "host_unavailable"


class InstallationRefused(ClusterError):
    """Family of reasons not to start."""

    code = "installation_refused"


class HomeRefused(InstallationRefused):
    """The home folder or a secret in it is not safe; ``facts["reason"]`` names why."""

    code = "home_refused"


class AlreadyRunning(InstallationRefused):
    """Another start or another marketplace holds this home."""

    code = "already_running"


class SecondNodeRefused(InstallationRefused):
    """A second node was asked for while the database is the embedded one."""

    code = "second_node_refused"


class StartFailed(ClusterError):
    """A part of the marketplace did not come up in time; ``facts["part"]`` names it."""

    code = "start_failed"


class NotRunning(ClusterError):
    """No marketplace runs from this home."""

    code = "not_running"


class GatewayUnreachable(ClusterError):
    """Nobody answers at the gateway's address; raised by clients alone."""

    code = "gateway_unreachable"


class UnknownField(ClusterError):
    """An answer lacks the field that was asked for; raised by the command line alone."""

    code = "unknown_field"


class RemoteProblem(ClusterError):
    """A problem document whose code this version does not know; it keeps the sender's code and status."""

    code = "remote_problem"

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence, **facts)
        self.remote_code = str(facts.get("remote_code", "remote_problem"))
        self.remote_status = int(facts.get("remote_status", 500))

    @classmethod
    def rebuild(cls, sentence: str, facts: dict[str, Any]) -> Self:
        """Makes the error anew when it crosses a process."""
        return cls(sentence, **facts)
