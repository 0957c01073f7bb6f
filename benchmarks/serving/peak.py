# SPDX-License-Identifier: Apache-2.0
"""What prefill could take at best: every product of a prompt, timed at its own shape and at its best.

Each expert counts with the rows that it really has in that layer. Attention counts with torch's fused kernel
and with plain products, whichever is faster. Weights are warm and nothing else is computed, so the sum is a
bound for whatever multiplies the same matrices with torch's products.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.serving.case import Format, Sizes


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """One product of a prompt.

    Attributes:
        count: how often the prompt needs it.
        flops: of one.
        ways: each does it once.
    """

    count: int
    flops: float
    ways: tuple[Callable[[], object], ...]


def products(sizes: Sizes, number_format: Format, prompt_tokens: int, rows_LE: Tensor) -> list[Product]:
    """All products of one prompt; of the head only the last position's.

    Args:
        sizes: of the model.
        number_format: of the weights.
        prompt_tokens: S.
        rows_LE: rows of each expert in each layer.
    """
    dtype = torch.bfloat16 if number_format == "bf16" else torch.float32
    width, inner, layers = sizes.width, sizes.inner, sizes.layers

    def linear(count: int, rows: int, n_in: int, n_out: int) -> Product:
        x, w = torch.randn(rows, n_in).to(dtype), torch.randn(n_out, n_in).to(dtype)
        return Product(count=count, flops=2.0 * rows * n_in * n_out, ways=(lambda: F.linear(x, w),))

    found = [linear(4 * layers, prompt_tokens, width, width), linear(1, 1, width, sizes.vocabulary)]
    for rows, count in sorted(Counter(rows_LE.flatten().tolist()).items()):
        if rows:
            found += [linear(2 * count, rows, width, inner), linear(count, rows, inner, width)]
    return [*found, _attention(sizes, prompt_tokens, dtype)]


def _attention(sizes: Sizes, prompt_tokens: int, dtype: torch.dtype) -> Product:
    head = sizes.shape.head_dim
    q, k, v = (torch.randn(1, sizes.heads, prompt_tokens, head).to(dtype) for _ in range(3))
    return Product(
        count=sizes.layers,
        flops=2.0 * sizes.heads * head * prompt_tokens**2,
        ways=(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            lambda: (q @ k.transpose(-1, -2)) @ v,
        ),
    )


class PeakMeter:
    """Times products again and again, keeping the best.

    Args:
        found: the products.
    """

    def __init__(self, found: list[Product]) -> None:
        self._products = found
        self._best = [float("inf")] * len(found)

    @torch.inference_mode()
    def measure(self, tries: int = 3) -> None:
        """Times each product some more."""
        for index, product in enumerate(self._products):
            for way in product.ways:
                for _ in range(tries):
                    began = time.perf_counter()
                    way()
                    self._best[index] = min(self._best[index], time.perf_counter() - began)

    @property
    def seconds(self) -> float:
        """The whole prompt at the best times seen."""
        pairs = zip(self._products, self._best, strict=True)
        return sum(product.count * best for product, best in pairs)

    @property
    def flops(self) -> float:
        """Of the whole prompt."""
        return sum(product.count * product.flops for product in self._products)
