# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a card as a whole; what is wrong with a part of one is listed, not raised.

Tree::

    PolicyError
    └── CardError
        ├── CardRefused     not a document of the announced kind, or one that hides something
        └── CardTooLarge    more bytes, levels, parts or drafts than are read
"""

from __future__ import annotations

from policy.errors import PolicyError


class CardError(PolicyError):
    """Family of cards and policies written elsewhere."""

    code = "card"


class CardRefused(CardError):
    """Not a document of the announced kind, or one that hides something."""

    code = "card_refused"


class CardTooLarge(CardError):
    """More than is read."""

    code = "card_too_large"
