# SPDX-License-Identifier: Apache-2.0
"""The kinds of fields that papers of a bundle are made of: digests, names, bounded texts and numbers.

Numbers stay within what every JSON reader keeps exactly.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from model_core.errors import InvalidDigest, InvalidName
from model_core.packing.canonical import check_digest
from model_core.packing.ids import check_name


def _digest(value: str) -> str:
    try:
        return check_digest(value)
    except InvalidDigest as error:
        raise ValueError(error.sentence) from error


def _name(value: str) -> str:
    try:
        return check_name(value, "bundle or tenant")
    except InvalidName as error:
        raise ValueError(error.sentence) from error


Digest = Annotated[str, AfterValidator(_digest)]
Name = Annotated[str, AfterValidator(_name)]
Text = Annotated[str, Field(max_length=10_000)]
SafeInt = Annotated[int, Field(ge=-(2**53) + 1, le=2**53 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
