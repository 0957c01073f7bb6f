# SPDX-License-Identifier: Apache-2.0
"""Values made in great number by code that has just computed their fields.

One question about hundreds of experts makes thousands of reasons. Checking fields that can only be right
costs more than deciding, so ``built`` leaves it out; whatever comes from outside is validated as ever.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

_new = object.__new__
_set = object.__setattr__


def built(kind: type[Model], fields: dict[str, Any]) -> Model:
    """A value of all its fields, unchecked; equal in everything to a validated one.

    Args:
        kind: of the value; frozen and without private attributes.
        fields: every field in its declared order and type; the value keeps this very dict.
    """
    value = _new(kind)
    _set(value, "__dict__", fields)
    _set(value, "__pydantic_fields_set__", _names(kind))
    _set(value, "__pydantic_extra__", None)
    _set(value, "__pydantic_private__", None)
    return value


@cache
def _names(kind: type[BaseModel]) -> set[str]:
    # Frozen values share it: what copies a value copies this set before it changes it.
    return set(kind.model_fields)
