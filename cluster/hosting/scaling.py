# SPDX-License-Identifier: Apache-2.0
"""How many replicas a base should have: by answers in flight and by the tokens that they may still need.

Serve asks from time to time, with what every replica last said about itself; it starts and drains replicas
without restarting others. The policy is a pure function; it holds no state and knows no prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

#: Names of what a replica says about itself.
CHOICES, TOKENS = "choices", "tokens"
#: With fewer replicas each must still be this far from its target, so that the number does not swing.
_SPARE = 0.7


def wanted_replicas(
    present: int,
    choices: Collection[float],
    tokens: Collection[float],
    *,
    choices_each: float,
    tokens_each: float,
) -> int:
    """The number of replicas at which none has more than it should.

    Args:
        present: replicas now.
        choices: choices in flight of every replica that has said so.
        tokens: tokens that those may still need.
        choices_each: what one replica should have at most.
        tokens_each: the same in tokens.

    Returns:
        At least 1; more than ``present`` as soon as they have too much, fewer only where the rest would have
        room to spare.
    """
    need = max(sum(choices) / choices_each, sum(tokens) / tokens_each)
    if need > present:
        return math.ceil(need)
    return max(1, min(present, math.ceil(need / _SPARE)))


class HostScaling:
    """Serve's autoscaling policy of the model hosts.

    Args:
        choices_each: choices in flight that one replica should have at most.
        tokens_each: tokens that those may still need at most.
    """

    def __init__(self, choices_each: float, tokens_each: float) -> None:
        self._choices_each = choices_each
        self._tokens_each = tokens_each

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number that Serve should aim at, within its own bounds, and no state."""
        said: Mapping[str, Mapping[Any, float]] = context.aggregated_metrics or {}
        wanted = wanted_replicas(
            context.current_num_replicas or 1,
            tuple(said.get(CHOICES, {}).values()),
            tuple(said.get(TOKENS, {}).values()),
            choices_each=self._choices_each,
            tokens_each=self._tokens_each,
        )
        return wanted, {}
