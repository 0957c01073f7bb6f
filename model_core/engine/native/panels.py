# SPDX-License-Identifier: Apache-2.0
"""Weight matrices packed into panels: the order in which the kernels read them (``source/panels.hpp``).

A panel holds 16 outputs, the last one padded with zeros; four panels are a band, the last one what is left.
Within a band the weights of one input stand side by side. In bf16 two inputs stand together, the first one
first. Knows neither files nor what a matrix is for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LANES = 16
BAND = 4
ALIGN_BYTES = 64

PanelKind = Literal["f32", "bf16", "i8"]
KINDS: tuple[PanelKind, ...] = ("f32", "bf16", "i8")
_DTYPES: dict[PanelKind, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "i8": torch.int8}


class MatrixView(ctypes.Structure):
    """``experts::Matrix`` of the kernels: addresses and sizes."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("n_out", ctypes.c_int64),
        ("n_in", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("exponents", ctypes.c_void_p),
        ("others", ctypes.c_void_p),
        ("others_at", ctypes.c_void_p),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShortExponents:
    """What belongs to weights that say in few bits which exponent they have.

    Attributes:
        exponents: those that have a code, uint8, sixteen with padding.
        others: exponents of all other weights, half a band after the other, in the order of the weights,
            uint8; 64 bytes more can be read.
        others_at: where those of each half of a band begin, and the last one's end, int64.
    """

    exponents: Tensor
    others: Tensor
    others_at: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """One packed matrix.

    Attributes:
        data: its panels, flat, in the kind's dtype; starts at a multiple of 64 bytes. With short exponents
            these are bytes, held as bf16, of which NaN leaves none that would stand for a number.
        scales: ``i8``: one fp32 scale per output, padded with zeros to whole panels; else None.
        n_out: outputs (O).
        n_in: inputs (I).
        kind: of its elements.
        short: what short exponents need; None where weights are whole.
    """

    data: Tensor
    scales: Tensor | None
    n_out: int
    n_in: int
    kind: PanelKind
    short: ShortExponents | None = None

    def view(self) -> MatrixView:
        """Where it lies; valid while this object lives."""
        scales = None if self.scales is None else self.scales.data_ptr()
        view = MatrixView(self.data.data_ptr(), scales, self.n_out, self.n_in, KINDS.index(self.kind))
        if self.short is not None:
            view.exponents = self.short.exponents.data_ptr()
            view.others = self.short.others.data_ptr()
            view.others_at = self.short.others_at.data_ptr()
        return view


def panel_kind(dtype: torch.dtype) -> PanelKind:
    """The kind in which weights of a dtype are packed; fp16 is widened to fp32, which holds it exactly."""
    return {torch.bfloat16: KINDS[1], torch.int8: KINDS[2]}.get(dtype, KINDS[0])


def packed_elements(kind: PanelKind, n_out: int, n_in: int) -> int:
    """Elements of a packed matrix, padding counted."""
    n_panels = -(-n_out // LANES)
    return n_panels * LANES * (n_in + n_in % 2 if kind == "bf16" else n_in)


def packed_bytes(kind: PanelKind, n_out: int, n_in: int) -> int:
    """Bytes of a packed matrix without its scales."""
    return packed_elements(kind, n_out, n_in) * _DTYPES[kind].itemsize


def pack_matrix(
    weight_OI: Tensor, *, kind: PanelKind | None = None, scales_O: Tensor | None = None
) -> Packed:
    """Packs a matrix into fresh memory.

    Args:
        weight_OI: the matrix, output by input, of any strides.
        kind: of the packed elements; None keeps the tensor's own.
        scales_O: ``i8``: what each output is multiplied by.

    Raises:
        ValueError: int8 without scales, or scales with another kind.
    """
    kind = kind or panel_kind(weight_OI.dtype)
    n_out, n_in = weight_OI.shape
    data = aligned(packed_elements(kind, n_out, n_in), _DTYPES[kind])
    pack_into(data, weight_OI, kind)
    if (scales_O is not None) != (kind == "i8"):
        raise ValueError("int8 matrices have scales, and no other kind has")
    scales = None if scales_O is None else pad_scales(scales_O)
    return Packed(data=data, scales=scales, n_out=n_out, n_in=n_in, kind=kind)


def pack_into(data: Tensor, weight_OI: Tensor, kind: PanelKind) -> None:
    """Packs a matrix into given memory of ``packed_elements`` elements of the kind's dtype."""
    step = 2 if kind == "bf16" else 1
    for begin, bands_BSWs in _bands(data, weight_OI.shape[0], step):
        _fill(bands_BSWs, weight_OI[begin : begin + bands_BSWs.shape[0] * bands_BSWs.shape[2]])


def _bands(data: Tensor, n_out: int, step: int) -> list[tuple[int, Tensor]]:
    """First output and memory of all whole bands, and of what is left ``[bands, steps, outputs, inputs]``."""
    n_panels = -(-n_out // LANES)
    whole = n_panels // BAND * BAND
    per_panel = data.shape[0] // n_panels
    parts = ((0, whole, BAND * LANES), (whole, n_panels, (n_panels - whole) * LANES))
    return [
        (
            begin * LANES,
            data[begin * per_panel : end * per_panel].view(
                (end - begin) * LANES // width, per_panel // LANES // step, width, step
            ),
        )
        for begin, end, width in parts
        if end > begin
    ]


def _fill(bands_BSWs: Tensor, weight_OI: Tensor) -> None:
    """Packs outputs into bands of one width, the last one maybe padded."""
    n_out, n_in = weight_OI.shape
    width, step = bands_BSWs.shape[2:]
    whole = n_out // width
    if n_in % step:
        bands_BSWs[:, -1, :, 1] = 0
    for lane in range(step):
        column_OS = weight_OI[:, lane::step]
        target_BSW = bands_BSWs[..., lane]
        steps = column_OS.shape[1]
        if whole:
            blocks_BWS = column_OS[: whole * width].reshape(whole, width, steps)
            target_BSW[:whole, :steps].copy_(blocks_BWS.transpose(1, 2))
        if rest := n_out - whole * width:
            target_BSW[whole, :steps, :rest].copy_(column_OS[whole * width :].T)
            target_BSW[whole, :, rest:] = 0


def pad_scales(scales_O: Tensor) -> Tensor:
    """Scales in fresh fp32 memory, padded with zeros to whole panels."""
    padded = aligned(-(-scales_O.shape[0] // LANES) * LANES, torch.float32)
    padded.zero_()
    padded[: scales_O.shape[0]] = scales_O
    return padded


def unpack_matrix(packed: Packed) -> Tensor:
    """The matrix ``[O, I]`` that was packed whole, in the kind's dtype; int8 without its scales."""
    step = 2 if packed.kind == "bf16" else 1
    parts = [
        bands_BSWs.permute(0, 2, 1, 3).reshape(-1, bands_BSWs.shape[1] * step)
        for _, bands_BSWs in _bands(packed.data, packed.n_out, step)
    ]
    return torch.cat(parts)[: packed.n_out, : packed.n_in].contiguous()


def aligned(n_elements: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised memory that starts at a multiple of 64 bytes, as one flat tensor."""
    raw = torch.empty(n_elements * dtype.itemsize + ALIGN_BYTES, dtype=torch.uint8)
    skip = -raw.data_ptr() % ALIGN_BYTES
    return raw[skip : skip + n_elements * dtype.itemsize].view(dtype)
