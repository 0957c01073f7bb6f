# SPDX-License-Identifier: Apache-2.0
"""What may be done with an expert after everybody was heard: the least that any of them allows.

The owner's choice, an order of the platform to stop, and a legal hold are kept apart, so that lifting one
brings back what the others say and nothing more. A hold never lets anything serve: it keeps bytes, and that
is all it does.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Serving = Literal["permitted", "denied"]
Storage = Literal["kept", "erasable", "erased"]


class Effective(BaseModel):
    """What holds in the end.

    Attributes:
        serving: whether anything may compute with it.
        storage: whether its bytes are to be kept, may be erased, or are gone.
        because: who decided that, in stable words.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    serving: Serving
    storage: Storage
    because: tuple[Literal["OWNER_DENIES", "ORDERED_TO_STOP", "LEGAL_HOLD", "ERASED"], ...]


def effective(*, owner_permits: bool, ordered_to_stop: bool, held: bool, erased: bool) -> Effective:
    """Combines everybody's word; none can widen what another denies.

    Args:
        owner_permits: the owner's own choice: a live permission stands.
        ordered_to_stop: compliance or a regulator ordered that it must not serve.
        held: somebody ordered that the bytes are kept.
        erased: the bytes are gone, or going.
    """
    said = (
        ("OWNER_DENIES", not owner_permits),
        ("ORDERED_TO_STOP", ordered_to_stop),
        ("LEGAL_HOLD", held),
        ("ERASED", erased),
    )
    return Effective.model_validate(
        {
            "serving": "permitted" if owner_permits and not ordered_to_stop and not erased else "denied",
            "storage": "erased" if erased else "kept" if held else "erasable",
            "because": tuple(word for word, holds in said if holds),
        }
    )
