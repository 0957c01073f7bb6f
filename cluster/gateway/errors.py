# SPDX-License-Identifier: Apache-2.0
"""What can go wrong at the HTTP door itself, beyond what the cluster floor names for every door.

Tree::

    ClusterError
    └── DoorError                 a request that the HTTP door refuses by itself
        ├── MissingKey            no key was shown, or something that is not one
        ├── WrongMethod           the address exists, the method does not
        ├── MalformedBody         not the JSON, form or file that was announced
        ├── UnsupportedParameter  an OpenAI parameter that would change the answer and is not offered
        ├── SignInExpired         a form whose session or token is gone
        ├── PreconditionFailed    an If-Match header that is not the present version of the thing
        ├── TooManyRequests       every place for a generation is taken
        ├── GenerationTimedOut    the answer did not begin, go on or end in time
        └── GenerationFailed      the model host gave up in the middle
"""

from __future__ import annotations

from cluster.errors import ClusterError


class DoorError(ClusterError):
    """Family of the HTTP door."""

    code = "door"


class MissingKey(DoorError):
    """No key was shown, or something that is not one."""

    code = "missing_key"


class WrongMethod(DoorError):
    """The address exists, but not for this method."""

    code = "wrong_method"


class MalformedBody(DoorError):
    """The body is not what its type says."""

    code = "malformed_body"


class UnsupportedParameter(DoorError):
    """A parameter that would change the answer is not offered."""

    code = "unsupported_parameter"


class SignInExpired(DoorError):
    """The form's session or its token is gone."""

    code = "sign_in_expired"


class PreconditionFailed(DoorError):
    """An ``If-Match`` header that is not the present version of the thing."""

    code = "precondition_failed"


class TooManyRequests(DoorError):
    """Every place for a generation is taken."""

    code = "too_many_requests"


class GenerationTimedOut(DoorError):
    """The answer did not begin, go on or end in time."""

    code = "generation_timed_out"


class GenerationFailed(DoorError):
    """The model host gave up in the middle of an answer."""

    code = "generation_failed"
