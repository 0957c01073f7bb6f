# SPDX-License-Identifier: Apache-2.0
"""Weights with short exponents (``source/short.hpp``): the same numbers in fewer bytes.

The weights of one matrix are of few magnitudes: nearly all of their eight-bit exponents are among fifteen,
and most among seven. So four bits each say which one it is in bf16, and three in fp32; an exponent that is
none of these stands apart. That leaves three quarters of bf16 and five sixths of fp32. Nothing is rounded. A
step of few rows waits for memory and for little else, so it takes that much less time. The codes are chosen
here and written by compiled code. Knows no files and no models.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from model_core.engine.native.library import Library
from model_core.engine.native.panels import BAND, KINDS, LANES, Packed, ShortExponents, aligned, panel_kind

# All weights of this exponent with any bit of the mantissa set are NaN.
NAN_EXPONENT: Final = 255

_N_EXPONENTS: Final = 256
# By kind: exponents that have a code of their own, and bytes of a pair of inputs of two panels.
_CODES: Final = {"bf16": 15, "f32": 7}
_RECORD_BYTES: Final = {"bf16": 96, "f32": 216}
# Kernels read and write this much at once, and so beyond the last of the exponents that stand apart.
_READ_BYTES: Final = 64
# What is larger than this share of whole weights takes longer to read than it saves.
_LARGEST: Final = 0.95


def shorten(weight_OI: Tensor, library: Library) -> Packed | None:
    """Packs a matrix with short exponents into fresh memory.

    Args:
        weight_OI: the matrix, of any strides.
        library: compiled code; other Python threads run while it packs.

    Returns:
        None where the matrix stays whole: it is neither bf16 nor fp32, outputs do not fill whole bands,
        inputs are odd, exponents are too many, or this processor cannot look them up.
    """
    n_out, n_in = weight_OI.shape
    if weight_OI.dtype not in (torch.bfloat16, torch.float32):
        return None
    if n_out % (BAND * LANES) or n_in % 2 or weight_OI.numel() == 0:
        return None
    kind = panel_kind(weight_OI.dtype)
    if not library.short_pays(kind):
        return None
    rows_OI = weight_OI.detach().contiguous()
    words, counts = rows_OI.data_ptr(), torch.zeros(_N_EXPONENTS, dtype=torch.int64)
    library.calls.experts_count_exponents(words, rows_OI.nbytes // 4, KINDS.index(kind), counts.data_ptr())
    n_codes = _CODES[kind]
    chosen = counts.argsort(descending=True, stable=True)[:n_codes].sort().values
    n_others = int(counts.sum() - counts[chosen].sum())
    n_halves = n_out // (BAND * LANES) * 2
    n_bytes = n_halves * (n_in // 2) * _RECORD_BYTES[kind]
    if n_bytes + n_others > _LARGEST * weight_OI.nbytes:
        return None
    code_of = torch.full((_N_EXPONENTS,), n_codes, dtype=torch.uint8)
    code_of[chosen] = torch.arange(n_codes, dtype=torch.uint8)
    data = aligned(n_bytes // 2, torch.bfloat16)
    others, others_at = aligned(n_others + _READ_BYTES, torch.uint8), aligned(n_halves + 1, torch.int64)
    places = [tensor.data_ptr() for tensor in (code_of, data, others, others_at)]
    library.calls.experts_shorten(words, n_out, n_in, KINDS.index(kind), *places)
    others[n_others:] = 0
    exponents = aligned(16, torch.uint8)
    exponents.zero_()[:n_codes] = chosen
    short = ShortExponents(exponents=exponents, others=others, others_at=others_at)
    return Packed(data=data, scales=None, n_out=n_out, n_in=n_in, kind=kind, short=short)
