# SPDX-License-Identifier: Apache-2.0
"""The weights that torch multiplies: the bank's own in place, or copies packed for the processor's caches.

Torch's product of a few rows with a matrix as it lies in a bundle reads memory at a third of its speed. The
library behind it (oneDNN) has a layout of its own that reads at nearly all of it; a matrix is brought into
that layout once. Pages of the bundle that nobody reads then are given back, so a process that packs holds one
copy, though one that it does not share with others. Where the library is missing or does not compute what it
should, weights are multiplied in place.

This module does not know rows, routing or pages.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.engine.native.footprint import release_file_pages
from model_core.network.bank import ExpertBank
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.ffn import RowFunction, SwiGLU
from model_core.network.kinds import Factors, Int8Ffn, LowRankFfn, SplitFfn
from model_core.network.mixture import LayerExperts


class BankWeights:
    """Weights as the bank holds them.

    Args:
        bank: whose.

    Attributes:
        decoder: layers that compute the base.
    """

    def __init__(self, bank: ExpertBank) -> None:
        self._bank = bank
        self.decoder = bank.decoder

    def head(self, x_TD: Tensor) -> Tensor:
        """Logits of normed rows."""
        return self.decoder.logits(x_TD)

    def panels(self) -> list[LayerExperts]:
        """What the layers route to, in the order of the bank's columns."""
        return self._bank.panels()

    def prepare(self, digest: str, expert: Expert) -> None:
        """See ``Runner.prepare``; nothing here."""

    def refresh(self) -> None:
        """See ``Runner.refresh``; nothing here, since nothing is copied."""


class PackedLinear(nn.Linear):
    """A matrix in the layout of torch's products library; nothing is kept of the plain one.

    Args:
        weight_OI: outputs x inputs, fp32 or bf16, on CPU.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__(weight_OI.shape[1], weight_OI.shape[0], bias=False, device="meta")
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous())

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name)
        """Rows times the matrix."""
        return _product(input, self.packed, "none")

    def silu(self, x_TD: Tensor) -> Tensor:
        """``silu(matrix x)`` in one pass."""
        return _product(x_TD, self.packed, "swish")

    def times(self, x_TD: Tensor, other_TO: Tensor) -> Tensor:
        """``(matrix x) * other`` in one pass."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_TD, other_TO, self.packed, None, "mul")
        return out


def _product(x_TI: Tensor, packed: Tensor, then: str) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, packed, None, then, [], "")
    return out


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine's torch has packed products for a dtype, and they are right on a small example."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 40, generator=generator).to(dtype) for n in (3, 24))
    plain = F.linear(x, weight)
    try:
        with torch.inference_mode():
            matrix = PackedLinear(weight)
            pairs = (
                (matrix(x), plain),
                (matrix.silu(x), F.silu(plain)),
                (matrix.times(x, plain), plain * plain),
                (matrix(x[:0]), plain[:0]),
            )
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return all(torch.allclose(one, other, rtol=2e-2, atol=1e-1) for one, other in pairs)


class PackedFfn(SwiGLU):
    """A SwiGLU of packed matrices.

    Args:
        gate_FD: inner x model width.
        up_FD: the same.
        down_DF: model x inner width.
    """

    gate: PackedLinear
    up: PackedLinear

    def __init__(self, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> None:
        nn.Module.__init__(self)
        self.gate, self.up, self.down = (PackedLinear(part) for part in (gate_FD, up_FD, down_DF))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps rows of width D to rows of width D."""
        out: Tensor = self.down(self.up.times(x_TD, self.gate.silu(x_TD)))
        return out


@dataclass(frozen=True, slots=True)
class _Packed:
    """An expert's networks, and what they were made from: a digest may come back as other tensors."""

    source: weakref.ref[Expert]
    layers: tuple[RowFunction, ...]


class PackedWeights(BankWeights):
    """Weights in packed copies; the public network is there once, also for experts that lean on it.

    Int8 networks stay as they are. A poisoned expert's copy is let go at once: whoever multiplied its column
    still would meet the bank's NaN.

    Args:
        bank: whose; on CPU, of a dtype that ``can_pack``.
    """

    def __init__(self, bank: ExpertBank) -> None:
        super().__init__(bank)
        self.decoder = _packed_decoder(bank.decoder)
        head = bank.decoder.lm_head
        self._head = PackedLinear(bank.decoder.embed.weight if head is None else head.weight)
        release_file_pages(bank.decoder.state_dict().values())
        self._held: dict[str, _Packed] = {}
        self._prepared: dict[str, _Packed] = {}
        self._panels: list[LayerExperts] = []
        self.refresh()

    def head(self, x_TD: Tensor) -> Tensor:
        """Logits of normed rows."""
        logits_TV: Tensor = self._head(x_TD)
        return logits_TV

    def panels(self) -> list[LayerExperts]:
        """What the layers route to, in the order of the bank's columns."""
        return self._panels

    def prepare(self, digest: str, expert: Expert) -> None:
        """Packs an expert, and keeps that for as long as the expert lives."""
        self._prepared[digest] = self._pack(expert)

    def refresh(self) -> None:
        """Packs what is new, lets go what has left or was poisoned."""
        names = self._bank.names()[1:]
        self._held = {name: self._hold(name) for name in names if name not in self._bank.poisoned}
        for name in [name for name, made in list(self._prepared.items()) if made.source() is None]:
            self._prepared.pop(name, None)
        panels = []
        for index, panel in enumerate(self._bank.panels()):
            held = [self._held.get(name) for name in names]
            others = [
                plain if one is None else one.layers[index]
                for one, plain in zip(held, panel.ffns[1:], strict=True)
            ]
            panels.append(replace(panel, ffns=(self.decoder.layer(index).ffn, *others)))
        self._panels = panels

    def _hold(self, name: str) -> _Packed:
        source = self._bank.held(name)
        for found in (self._held.get(name), self._prepared.pop(name, None)):
            if found is not None and found.source() is source:
                return found
        return self._pack(source)

    def _pack(self, expert: Expert) -> _Packed:
        layers = tuple(
            _packed_function(expert, index, self.decoder.layer(index).ffn)
            for index in range(len(expert.layers))
        )
        if not any(isinstance(expert.layer(0).ffn, kind) for kind in (Int8Ffn, LowRankFfn)):
            release_file_pages(expert.state_dict().values())
        return _Packed(weakref.ref(expert), layers)


def _packed_decoder(decoder: Decoder) -> Decoder:
    """The same base with packed matrices; everything else is shared with it."""
    with torch.device("meta"):
        twin = Decoder(decoder.shape)
    twin.load_state_dict(decoder.state_dict(), assign=True)
    twin.rope_cos, twin.rope_sin = decoder.rope_cos, decoder.rope_sin
    for index in range(decoder.shape.n_layers):
        layer = twin.layer(index)
        for name in ("q", "k", "v", "o"):
            setattr(layer.attn, name, PackedLinear(getattr(layer.attn, name).weight))
        layer.ffn = PackedFfn(*layer.ffn.dense(layer.ffn))
    return twin.requires_grad_(False).eval()


def _packed_function(expert: Expert, index: int, public: SwiGLU) -> RowFunction:
    part = expert.layer(index)
    network = part.ffn
    if isinstance(network, Int8Ffn):
        return part.row_function(public)
    if isinstance(network, LowRankFfn):
        return _beside_packed(network, public)
    if isinstance(network, (SwiGLU, SplitFfn)):
        return PackedFfn(*part.dense_ffn(public))
    return part.row_function(public)


def _beside_packed(network: LowRankFfn, public: SwiGLU) -> RowFunction:
    """A low-rank network whose public products are the packed ones."""

    def changed(factors: Factors, matrix: Callable[[Tensor], Tensor], x_RI: Tensor) -> Tensor:
        return matrix(x_RI) + F.linear(F.linear(x_RI, factors.a), factors.b)

    def compute(x_RD: Tensor) -> Tensor:
        gate_RF = changed(network.gate, public.gate, x_RD)
        up_RF = changed(network.up, public.up, x_RD)
        return changed(network.down, public.down, F.silu(gate_RF) * up_RF)

    return compute
