# SPDX-License-Identifier: Apache-2.0
"""What the machine could do at best: every product of one training step at the best speed seen for its shape.

The sum of these times, each product as often as a step needs it, is a bound below which no step can go that
multiplies the same matrices. Attention counts with the faster of torch's fused kernel and ours. Products are
those of a step that computes no gradient for anything frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.training.case import Case
from benchmarks.training.turns import clock
from model_core.training.fused.attention import causal_attention


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One product of a step.

    Attributes:
        count: how often a step needs it.
        flops: of one.
        run: does it once.
    """

    count: int
    flops: float
    run: Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The bound of a case.

    Attributes:
        flops: of one step.
        seconds: of one step at the best speed of each shape.
    """

    flops: float
    seconds: float


def products(case: Case) -> list[list[Product]]:
    """A step's products; each entry lists ways to do the same, of which the fastest counts."""
    dtype = torch.bfloat16 if case.number_format == "bf16" else torch.float32
    tokens, width, inner, layers = case.step_tokens, case.width, case.inner, case.layers

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns).to(dtype)

    def linear(n_in: int, n_out: int, *, forward: int, by_input: int, by_weight: int) -> list[list[Product]]:
        x, w, g = matrix(tokens, n_in), matrix(n_out, n_in), matrix(tokens, n_out)
        flops = 2.0 * tokens * n_in * n_out
        ways = (
            (forward, lambda: x @ w.t()),
            (by_input, lambda: g @ w),
            (by_weight, lambda: g.t() @ x),
        )
        return [[Product(count=count, flops=flops, run=run)] for count, run in ways if count]

    # Below the first trained tensor nothing goes backward: no attention, and of the networks the own one's
    # down matrix alone.
    found = linear(width, width, forward=4 * layers, by_input=4 * (layers - 1), by_weight=0)
    found += linear(width, inner, forward=4 * layers, by_input=4 * (layers - 1), by_weight=2 * layers)
    found += linear(inner, width, forward=2 * layers, by_input=2 * layers - 1, by_weight=layers)
    found += linear(width, case.vocabulary, forward=1, by_input=1, by_weight=0)
    return found + _attention(case, dtype)


def _attention(case: Case, dtype: torch.dtype) -> list[list[Product]]:
    head = case.width // case.heads
    sizes = (case.rows, case.positions, case.heads, head)
    q, k, v, grad = (torch.randn(sizes).to(dtype) for _ in range(4))
    flops = 2.0 * case.rows * case.heads * head * case.positions**2

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        turned = (part.transpose(1, 2) for part in (q, k, v))
        return F.scaled_dot_product_attention(*turned, is_causal=True).transpose(1, 2)

    forward, backward = [], []
    for way in (causal_attention, fused):
        leaves = [part.clone().requires_grad_() for part in (q, k, v)]
        out = way(*leaves)
        forward.append(
            Product(count=case.layers, flops=flops, run=lambda way=way: way(q, k, v))  # type: ignore[misc]
        )
        backward.append(
            Product(
                count=case.layers - 1,
                flops=2.5 * flops,
                run=lambda out=out, leaves=leaves: torch.autograd.grad(  # type: ignore[misc]
                    out, leaves, grad, retain_graph=True
                ),
            )
        )
    return [forward, backward]


class PeakMeter:
    """Times the products of a case again and again, keeping the best.

    Args:
        case: the setting.
        threads: of torch.
    """

    def __init__(self, case: Case, *, threads: int) -> None:
        self._clock = clock(threads)
        self._products = products(case)
        self._best = [[float("inf")] * len(ways) for ways in self._products]

    def measure(self, rounds: int = 5) -> None:
        """Times each product some more."""
        for ways, best in zip(self._products, self._best, strict=True):
            for index, way in enumerate(ways):
                for _ in range(rounds):
                    began = self._clock()
                    way.run()
                    best[index] = min(best[index], self._clock() - began)

    def peak(self) -> Peak:
        """The bound as seen so far."""
        pairs = list(zip(self._products, self._best, strict=True))
        return Peak(
            flops=sum(ways[0].count * ways[0].flops for ways, _ in pairs),
            seconds=sum(ways[0].count * min(best) for ways, best in pairs),
        )
