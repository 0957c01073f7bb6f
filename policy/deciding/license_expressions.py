# SPDX-License-Identifier: Apache-2.0
"""SPDX license expressions as trees.

Wraps the library that reads them, whose own errors are of many kinds. Knows no license and no use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import license_expression

from policy.errors import InvalidLicenseExpression

MAX_EXPRESSION_CHARS: Final = 2_000
MAX_DEPTH: Final = 40


@dataclass(frozen=True, slots=True)
class Node:
    """A license expression as a tree: a license by its key, or ``and``/``or`` of at least two nodes."""

    kind: Literal["license", "and", "or"]
    key: str = ""
    children: tuple[Node, ...] = ()


@lru_cache(maxsize=4096)
def parse(expression: str) -> Node:
    """Reads an SPDX license expression.

    Raises:
        InvalidLicenseExpression: it is empty, too long, too deep or not an expression.
    """
    if not expression.strip() or len(expression) > MAX_EXPRESSION_CHARS:
        raise InvalidLicenseExpression(
            "A license expression has to hold between one and 2000 characters, as in MIT OR Apache-2.0."
        )
    try:
        tree = license_expression.Licensing().parse(expression)
    except Exception as error:  # the library also leaks AttributeError and others on malformed input
        raise InvalidLicenseExpression(
            f"{expression!r} is not a license expression; write it like MIT OR (Apache-2.0 AND CC-BY-4.0).",
            expression=expression,
        ) from error
    return _node(tree, expression, 0)


def _node(tree: Any, expression: str, depth: int) -> Node:
    if depth <= MAX_DEPTH:
        if isinstance(tree, license_expression.LicenseWithExceptionSymbol):
            base, exception = tree.license_symbol.key, tree.exception_symbol.key
            return Node("license", key=_key(f"{base} WITH {exception}", expression, words=3))
        if isinstance(tree, license_expression.LicenseSymbol):
            return Node("license", key=_key(str(tree.key), expression, words=1))
        kind: Literal["and", "or"] | None = None
        if isinstance(tree, license_expression.AND):
            kind = "and"
        elif isinstance(tree, license_expression.OR):
            kind = "or"
        if kind is not None:
            return Node(kind, children=tuple(_node(arg, expression, depth + 1) for arg in tree.args))
    raise InvalidLicenseExpression(
        f"{expression!r} is no license expression that can be evaluated; simplify it.", expression=expression
    )


def _key(key: str, expression: str, *, words: int) -> str:
    # The library reads "MIT MIT" as one license of that name; two words without an operator are a slip.
    if len(key.split()) != words:
        raise InvalidLicenseExpression(
            f"{expression!r} names licenses without AND, OR or WITH between them.", expression=expression
        )
    return key
