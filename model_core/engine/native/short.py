# SPDX-License-Identifier: Apache-2.0
"""Weights with short exponents (``source/short.hpp``): the same numbers in fewer bytes.

The weights of one matrix are of few magnitudes: nearly all of their eight-bit exponents are among fifteen,
and most among seven. So four bits each say which one it is in bf16, and three in fp32; an exponent that is
none of these stands apart. That leaves three quarters of bf16 and five sixths of fp32. Nothing is rounded. A
step of few rows waits for memory and for little else, so it takes that much less time. Knows no files and no
models.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_core.engine.native.panels import BAND, LANES, Packed, PanelKind, ShortExponents, aligned

# All weights of this exponent with any bit of the mantissa set are NaN.
NAN_EXPONENT: Final = 255

_BAND_OUTPUTS: Final = BAND * LANES
_RECORD_WEIGHTS: Final = 64
_RECORD_BYTES: Final[dict[PanelKind, int]] = {"bf16": 96, "f32": 216}
# The code of all exponents that stand apart; those that have a code of their own are as many.
_OTHER: Final[dict[PanelKind, int]] = {"bf16": 15, "f32": 7}
_DTYPES: Final[dict[PanelKind, torch.dtype]] = {"bf16": torch.bfloat16, "f32": torch.float32}
# Kernels read this much at once, and so beyond the last of the exponents that stand apart.
_READ_BYTES: Final = 64
# More at a time would hold up other threads of the interpreter, and take more memory.
_WEIGHTS_AT_ONCE: Final = 1 << 16
# What is larger than this share of whole weights takes longer to read than it saves.
_LARGEST: Final = 0.95

_Numbers = npt.NDArray[Any]
_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint16]


def shorten(weight_OI: Tensor) -> Packed | None:
    """Packs a matrix with short exponents into fresh memory, some bands at a time.

    Args:
        weight_OI: the matrix, bf16 or fp32, of any strides.

    Returns:
        None where outputs do not fill whole bands or inputs are odd, and where exponents are too many.
    """
    n_out, n_in = weight_OI.shape
    kind: PanelKind = "bf16" if weight_OI.dtype == torch.bfloat16 else "f32"
    if n_out % _BAND_OUTPUTS or n_in % 2 or weight_OI.numel() == 0:
        return None
    step = max(1, _WEIGHTS_AT_ONCE // (n_in * _BAND_OUTPUTS)) * _BAND_OUTPUTS
    pieces = [weight_OI[begin : begin + step] for begin in range(0, n_out, step)]
    counts = np.sum([np.bincount(_exponents(piece).reshape(-1), minlength=256) for piece in pieces], axis=0)
    exponents, code_of = _codes(counts, _OTHER[kind])
    n_others = int(counts[code_of == _OTHER[kind]].sum())
    record_bytes = _RECORD_BYTES[kind]
    # Of records: bands, pairs of inputs, halves of a band.
    sizes = (n_out // _BAND_OUTPUTS, n_in // 2, 2)
    n_bytes = math.prod(sizes) * record_bytes
    if n_bytes + n_others > _LARGEST * weight_OI.nbytes:
        return None
    data = aligned(n_bytes // 2, torch.bfloat16)
    records = data.view(torch.uint8).numpy().reshape(*sizes, record_bytes)
    others, ends, begin = aligned(n_others + _READ_BYTES, torch.uint8), [np.zeros(1, np.int64)], 0
    for piece in pieces:
        end = begin + piece.shape[0] // _BAND_OUTPUTS
        found, lengths = _fill(records[begin:end], piece, kind, code_of)
        first = int(ends[-1][-1])
        others[first : first + len(found)] = torch.from_numpy(found)
        ends.append(first + np.cumsum(lengths))
        begin = end
    others[n_others:] = 0
    short = ShortExponents(exponents=_own(exponents), others=others, others_at=_own(np.concatenate(ends)))
    return Packed(data=data, scales=None, n_out=n_out, n_in=n_in, kind=kind, short=short)


def lengthen(packed: Packed) -> Tensor:
    """The matrix ``[O, I]`` that was packed with short exponents, in the kind's dtype.

    Raises:
        ValueError: it was packed whole.
    """
    if packed.short is None:
        raise ValueError("these weights have no short exponents")
    sizes = (packed.n_out // _BAND_OUTPUTS, packed.n_in // 2, 2)
    records = packed.data.view(torch.uint8).numpy().reshape(*sizes, -1)
    if packed.kind == "bf16":
        codes = np.concatenate((records[..., 64:] & 15, records[..., 64:] >> 4), axis=-1)
    else:
        lower = np.concatenate([records[..., 64:80] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
        codes = lower | np.unpackbits(records[..., 80:88], axis=-1, bitorder="little") << 2
    exponents = packed.short.exponents.numpy()[codes]
    # Those that stand apart are in the order of halves, and of pairs of inputs within one.
    by_halves = exponents.swapaxes(1, 2)
    others = packed.short.others.numpy()[: int(packed.short.others_at[-1])]
    by_halves[(codes == _OTHER[packed.kind]).swapaxes(1, 2)] = others
    rest = records[..., :_RECORD_WEIGHTS].astype(np.uint16)
    words = [_unordered(rest << 15 | exponents.astype(np.uint16) << 7 | rest >> 1, packed)]
    if packed.kind == "f32":
        lows = np.ascontiguousarray(records[..., 88:]).view(np.uint16)
        words.insert(0, _unordered(lows, packed, alternating=False))
    joined = torch.from_numpy(np.stack(words, axis=-1).view(np.int16))
    return joined.view(_DTYPES[packed.kind]).reshape(packed.n_out, packed.n_in)


def _words(weight_OI: Tensor) -> _Words:
    """Elements as words of sixteen bits, the highest last."""
    flat = weight_OI.detach().contiguous()
    words: _Words = flat.view(torch.int16).numpy().view(np.uint16).reshape(*weight_OI.shape, -1)
    return words


def _exponents(weight_OI: Tensor) -> _Bytes:
    return (_words(weight_OI)[..., -1] >> 7).astype(np.uint8)


def _codes(counts: _Numbers, n_codes: int) -> tuple[_Bytes, _Bytes]:
    """Exponents by code, padded, and codes by exponent: the most frequent ones have codes of their own."""
    chosen = np.sort(np.argsort(-counts, kind="stable")[:n_codes]).astype(np.uint8)
    code_of = np.full(256, n_codes, np.uint8)
    code_of[chosen] = np.arange(n_codes, dtype=np.uint8)
    return np.pad(chosen, (0, 16 - n_codes)), code_of


def _fill(
    records: _Bytes, weight_OI: Tensor, kind: PanelKind, code_of: _Bytes
) -> tuple[_Bytes, npt.NDArray[np.int64]]:
    """Writes some bands; returns exponents that stand apart, and how many belong to each half of a band."""
    shape = (*records.shape[:3], _RECORD_WEIGHTS)
    words_OIW = _words(weight_OI)
    highs = np.ascontiguousarray(_ordered(words_OIW[..., -1], kind)).reshape(shape)
    exponents = (highs >> 7).astype(np.uint8)
    # The seven highest bits of the mantissa above the sign.
    records[..., :_RECORD_WEIGHTS] = highs << 1 | highs >> 15
    codes = np.take(code_of, exponents)
    if kind == "bf16":
        records[..., 64:] = codes[..., :32] | codes[..., 32:] << 4
    else:
        records[..., 64:80] = _in_quarters(codes)
        records[..., 80:88] = np.packbits(codes >> 2, axis=-1, bitorder="little")
        lows = _ordered(words_OIW[..., 0], kind, alternating=False).reshape(shape)
        records[..., 88:] = np.ascontiguousarray(lows).view(np.uint8)
    # Half after half, and within one pair of inputs after pair of inputs.
    apart = (codes == _OTHER[kind]).swapaxes(1, 2)
    return exponents.swapaxes(1, 2)[apart], apart.sum(axis=(2, 3), dtype=np.int64).reshape(-1)


def _in_quarters(codes: _Bytes) -> _Bytes:
    """The two lower bits of codes, those of four quarters of a record beside each other in a byte."""
    first, second, third, fourth = (codes[..., begin : begin + 16] & 3 for begin in range(0, 64, 16))
    return np.asarray(first | second << 2 | third << 4 | fourth << 6, dtype=np.uint8)


def _order(kind: PanelKind, *, alternating: bool) -> tuple[int, ...]:
    """Axes ``B Q P L l S h`` in the order in which a band holds them.

    These are bands, halves of two panels, panels, fours of lanes, lanes, pairs of inputs, inputs.
    """
    panels = (3, 2) if alternating else (2, 3)
    inputs = (4, 6) if kind == "bf16" else (6, 4)
    return (0, 5, 1, *panels, *inputs)


def _sizes(n_out: int, n_in: int) -> tuple[int, ...]:
    return (n_out // _BAND_OUTPUTS, 2, 2, 4, 4, n_in // 2, 2)


def _ordered(x_OI: _Numbers, kind: PanelKind, *, alternating: bool = True) -> _Numbers:
    """Numbers of a matrix in the order of its bands.

    Args:
        x_OI: one number per weight.
        kind: of the matrix.
        alternating: whether fours of lanes of two panels take turns, as bytes do; else panel follows panel.
    """
    return x_OI.reshape(_sizes(*x_OI.shape)).transpose(_order(kind, alternating=alternating))


def _unordered(x: _Numbers, packed: Packed, *, alternating: bool = True) -> _Numbers:
    """What ``_ordered`` was given."""
    order, sizes = _order(packed.kind, alternating=alternating), _sizes(packed.n_out, packed.n_in)
    cut = x.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order))
    return np.ascontiguousarray(cut).reshape(packed.n_out, packed.n_in)


def _own(numbers: _Numbers) -> Tensor:
    tensor = torch.from_numpy(numbers)
    memory = aligned(tensor.numel(), tensor.dtype)
    memory.copy_(tensor)
    return memory
