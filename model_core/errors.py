# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with weights, and the root of every family of errors.

Tree::

    ProductError                 root of all floors; carries a stable code and a sentence
    └── ModelCoreError           family of this floor (its members are defined beside it below)

Other floors hang their own family below ``ProductError`` in their own ``errors.py``. A code is API: it
never changes once released. The sentence says what happened and what to do next, and never holds a
secret, a prompt or a path outside the caller's own folders.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class ProductError(Exception):
    """An expected refusal with a stable code, a sentence for people and facts for programs.

    Args:
        sentence: what happened and what to do next, one or two sentences.
        **facts: JSON-able details, kept through pickling.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence, facts)
        self.sentence = sentence
        self.facts = facts

    def __str__(self) -> str:
        return self.sentence

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.sentence, self.facts))

    @classmethod
    def rebuild(cls, sentence: str, facts: dict[str, Any]) -> Self:
        """Makes the error anew from its two fields (used when it crosses a process)."""
        return cls(sentence, **facts)


def _rebuild(kind: type[ProductError], sentence: str, facts: dict[str, Any]) -> ProductError:
    return kind.rebuild(sentence, facts)


class ModelCoreError(ProductError):
    """Family of the tensor floor."""

    code = "model_core"
