# SPDX-License-Identifier: Apache-2.0
"""What prefill could take at best: every product of a prompt, timed at its own shape and at its best.

Each expert counts with the rows that it really has in that layer. Each product counts with torch's routine or
with our compiled one, whichever is faster; attention with torch's fused kernel or with the two products of
its heads, over half the keys as causality leaves on average, without a softmax. Weights are warm and nothing
else is computed, so the sum is a bound for what multiplies the same matrices. Ours run apart from torch's:
for milliseconds after a routine of torch its threads stand in the way of others. What torch's routines alone
would need is kept too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.serving.case import Format, Sizes
from benchmarks.serving.rest import rest
from model_core.engine.native.library import Pool
from model_core.engine.native.panels import pack_matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One product of a prompt.

    Attributes:
        count: how often the prompt needs it.
        flops: of one.
        ways: each does it once with torch.
        own: each does it once with our kernels.
    """

    count: int
    flops: float
    ways: tuple[Callable[[], object], ...]
    own: tuple[Callable[[], object], ...] = ()


def products(
    sizes: Sizes, number_format: Format, prompt_tokens: int, rows_LE: Tensor, pool: Pool | None = None
) -> list[Product]:
    """All products of one prompt; of the head only the last position's.

    Args:
        sizes: of the model.
        number_format: of the weights.
        prompt_tokens: S.
        rows_LE: rows of each expert in each layer.
        pool: threads of our kernels; None times torch's alone.
    """
    dtype = torch.bfloat16 if number_format == "bf16" else torch.float32
    width, inner, layers = sizes.width, sizes.inner, sizes.layers

    def linear(count: int, rows: int, n_in: int, n_out: int) -> Product:
        x, w = torch.randn(rows, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)
        own = () if pool is None else (_own_way(pool, x, w),)
        return Product(count=count, flops=2.0 * rows * n_in * n_out, ways=(lambda: F.linear(x, w),), own=own)

    found = [linear(4 * layers, prompt_tokens, width, width), linear(1, 1, width, sizes.vocabulary)]
    for rows, count in sorted(Counter(rows_LE.flatten().tolist()).items()):
        if rows:
            found += [linear(2 * count, rows, width, inner), linear(count, rows, inner, width)]
    return [*found, _attention(sizes, prompt_tokens, dtype, pool)]


def _own_way(pool: Pool, x: Tensor, w: Tensor) -> Callable[[], object]:
    matrix, rows = pack_matrix(w), x.float()
    out = torch.empty(x.shape[0], w.shape[0])
    return lambda: pool.multiply(matrix, rows, out)


def _attention(sizes: Sizes, prompt_tokens: int, dtype: torch.dtype, pool: Pool | None) -> Product:
    head = sizes.shape.head_dim
    own = () if pool is None else (_own_heads(pool, sizes, prompt_tokens, dtype),)
    q, k, v = (torch.randn(1, sizes.heads, prompt_tokens, head).to(dtype) for _ in range(3))
    return Product(
        count=sizes.layers,
        flops=2.0 * sizes.heads * head * prompt_tokens**2,
        ways=(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            lambda: (q @ k.transpose(-1, -2)) @ v,
        ),
        own=own,
    )


def _own_heads(pool: Pool, sizes: Sizes, prompt_tokens: int, dtype: torch.dtype) -> Callable[[], object]:
    """Scores and mixed values of all heads, one after the other."""
    head, seen = sizes.shape.head_dim, -(-prompt_tokens // 2)
    scores = _own_way(pool, torch.randn(prompt_tokens, head), torch.randn(seen, head).to(dtype))
    values = _own_way(pool, torch.randn(prompt_tokens, seen), torch.randn(head, seen).to(dtype))

    def all_heads() -> None:
        for _ in range(sizes.heads):
            scores()
            values()

    return all_heads


class PeakMeter:
    """Times products again and again, keeping the best.

    Args:
        found: the products.
    """

    def __init__(self, found: list[Product]) -> None:
        self._products = found
        self._torch_s = [float("inf")] * len(found)
        self._own_s = [float("inf")] * len(found)

    @torch.inference_mode()
    def measure(self, tries: int = 3) -> None:
        """Times each product some more."""
        rest()
        self._time([product.own for product in self._products], self._own_s, tries)
        self._time([product.ways for product in self._products], self._torch_s, tries)

    def _time(
        self, sides: Sequence[tuple[Callable[[], object], ...]], best_s: list[float], tries: int
    ) -> None:
        for index, ways in enumerate(sides):
            for way in ways:
                for _ in range(tries):
                    began = time.perf_counter()
                    way()
                    best_s[index] = min(best_s[index], time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        """The whole prompt, each product at the best time seen."""
        return self._sum([min(pair) for pair in zip(self._torch_s, self._own_s, strict=True)])

    @property
    def torch_seconds(self) -> float:
        """The whole prompt with torch's routines alone."""
        return self._sum(self._torch_s)

    @property
    def flops(self) -> float:
        """Of the whole prompt."""
        return sum(product.count * product.flops for product in self._products)

    def _sum(self, best_s: list[float]) -> float:
        pairs = zip(self._products, best_s, strict=True)
        return sum(product.count * seconds for product, seconds in pairs)
