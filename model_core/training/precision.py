# SPDX-License-Identifier: Apache-2.0
"""Which number format makes training fast on this machine: measured, not guessed from a model name."""

from __future__ import annotations

import time

import torch

from model_core.training.recipe import Precision


def choose_precision(wanted: Precision, *, d_model: int = 256, d_ffn: int = 768) -> Precision:
    """Resolves ``auto`` to ``bf16`` where its matrix products are at least 1.3 times as fast, else ``fp32``.

    Args:
        wanted: what the recipe says; anything but ``auto`` is returned as it is.
        d_model: width of the products to time.
        d_ffn: their other width.
    """
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return (
        "bf16"
        if _seconds(torch.float32, d_model, d_ffn) > 1.3 * _seconds(torch.bfloat16, d_model, d_ffn)
        else "fp32"
    )


def _seconds(dtype: torch.dtype, d_model: int, d_ffn: int) -> float:
    left, right = torch.ones(1024, d_model, dtype=dtype), torch.ones(d_model, d_ffn, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - began)
    return best
