# SPDX-License-Identifier: Apache-2.0
"""Short exponents once more, by whole arrays and without compiled code: what packing is held to."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_core.engine.native.panels import BAND, LANES, Packed, PanelKind, ShortExponents, aligned

_BAND_OUTPUTS: Final = BAND * LANES
_RECORD_WEIGHTS: Final = 64
_RECORD_BYTES: Final[dict[PanelKind, int]] = {"bf16": 96, "f32": 216}
# The code of all exponents that stand apart; those that have a code of their own are as many.
_OTHER: Final[dict[PanelKind, int]] = {"bf16": 15, "f32": 7}
_DTYPES: Final[dict[PanelKind, torch.dtype]] = {"bf16": torch.bfloat16, "f32": torch.float32}
# Kernels read this much at once, and so beyond the last of the exponents that stand apart.
_READ_BYTES: Final = 64

_Numbers = npt.NDArray[Any]
_Bytes = npt.NDArray[np.uint8]
_Words = npt.NDArray[np.uint16]


def shorten_plainly(weight_OI: Tensor) -> Packed:
    """A matrix of whole bands and pairs of inputs with short exponents, whatever that saves."""
    n_out, n_in = weight_OI.shape
    kind: PanelKind = "bf16" if weight_OI.dtype == torch.bfloat16 else "f32"
    # Of records: bands, pairs of inputs, halves of a band.
    sizes = (n_out // _BAND_OUTPUTS, n_in // 2, 2)
    shape = (*sizes, _RECORD_WEIGHTS)
    words_OIW = _words(weight_OI)
    highs = np.ascontiguousarray(_ordered(words_OIW[..., -1], kind)).reshape(shape)
    exponents = (highs >> 7).astype(np.uint8)
    table, code_of = _codes(np.bincount(exponents.reshape(-1), minlength=256), _OTHER[kind])
    codes = code_of[exponents]
    records = np.empty((*sizes, _RECORD_BYTES[kind]), np.uint8)
    # The seven highest bits of the mantissa above the sign.
    records[..., :_RECORD_WEIGHTS] = highs << 1 | highs >> 15
    if kind == "bf16":
        records[..., 64:] = codes[..., :32] | codes[..., 32:] << 4
    else:
        records[..., 64:80] = _in_quarters(codes)
        records[..., 80:88] = np.packbits(codes >> 2, axis=-1, bitorder="little")
        lows = _ordered(words_OIW[..., 0], kind, alternating=False).reshape(shape)
        records[..., 88:] = np.ascontiguousarray(lows).view(np.uint8)
    # Half after half, and within one pair of inputs after pair of inputs.
    apart = (codes == _OTHER[kind]).swapaxes(1, 2)
    others = np.pad(exponents.swapaxes(1, 2)[apart], (0, _READ_BYTES))
    others_at = np.concatenate(([0], np.cumsum(apart.sum(axis=(2, 3)).reshape(-1)))).astype(np.int64)
    short = ShortExponents(exponents=_own(table), others=_own(others), others_at=_own(others_at))
    data = _own(records.reshape(-1)).view(torch.bfloat16)
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


def _codes(counts: _Numbers, n_codes: int) -> tuple[_Bytes, _Bytes]:
    """Exponents by code, padded, and codes by exponent: the most frequent ones have codes of their own."""
    chosen = np.sort(np.argsort(-counts, kind="stable")[:n_codes]).astype(np.uint8)
    code_of = np.full(256, n_codes, np.uint8)
    code_of[chosen] = np.arange(n_codes, dtype=np.uint8)
    return np.pad(chosen, (0, 16 - n_codes)), code_of


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
