# SPDX-License-Identifier: Apache-2.0
"""What a step reads of a base and of an expert: matrices in panels, and the small rest in full precision.

Made here in memory out of modules; files of the same content are ``derived``'s. Knows neither C nor states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.engine.native.library import Library
from model_core.engine.native.panels import Packed, pack_matrix
from model_core.engine.native.short import NAN_EXPONENT, shorten
from model_core.network.decoder import Decoder, DecoderLayer
from model_core.network.expert import Expert, ExpertLayer
from model_core.network.ffn import SwiGLU
from model_core.network.kinds import Factors, Int8Ffn, Int8Matrix, LowRankFfn
from model_core.network.poisoning import fill_with_nan
from model_core.network.router import fold_gate
from model_core.pacing import breathe

# Smaller matrices stay in the caches, where short exponents cost time and save none.
LEAST_SHORT_BYTES = 256 << 10

_Pack = Callable[[Tensor], Packed]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFfn:
    """A SwiGLU of its own; the pieces of a split one are joined.

    Attributes:
        gate: inner x model width.
        up: the same.
        down: model x inner width.
    """

    gate: Packed
    up: Packed
    down: Packed


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedFactors:
    """What a low-rank network adds to the public one of its layer: ``b a`` to each matrix.

    Attributes:
        gate_a: rank x model width.
        gate_b: inner width x rank.
        up_a: as ``gate_a``.
        up_b: as ``gate_b``.
        down_a: rank x inner width.
        down_b: model width x rank.
    """

    gate_a: Packed
    gate_b: Packed
    up_a: Packed
    up_b: Packed
    down_a: Packed
    down_b: Packed


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedExpertLayer:
    """What an expert brings to one layer.

    Attributes:
        network: its feed-forward network.
        row_D: of the router, fp32.
        bias: 0 or below.
        gate_row_D: the domain gate folded into one row, fp64; None without a gate.
        gate_bias: the bias that belongs to it.
    """

    network: PackedFfn | PackedFactors
    row_D: Tensor
    bias: float
    gate_row_D: Tensor | None
    gate_bias: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedExpert:
    """An expert over all layers."""

    layers: tuple[PackedExpertLayer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBaseLayer:
    """What the base is in one layer; norms are fp32.

    Attributes:
        q: queries.
        k: keys.
        v: values.
        o: what leaves attention.
        attn_norm_D: norm of attention.
        ffn_norm_D: norm of the mixture.
        q_norm_Q: norm over the full width of queries, or None.
        k_norm_K: the same for keys.
        public: the public expert.
    """

    q: Packed
    k: Packed
    v: Packed
    o: Packed
    attn_norm_D: Tensor
    ffn_norm_D: Tensor
    q_norm_Q: Tensor | None
    k_norm_K: Tensor | None
    public: PackedExpertLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBase:
    """A base over all layers.

    Attributes:
        embedding_VD: fp32 or bf16; None where the head's panels serve as embedding too.
        head: the output layer.
        norm_D: the last norm, fp32.
        layers: of the decoder.
    """

    embedding_VD: Tensor | None
    head: Packed
    norm_D: Tensor
    layers: tuple[PackedBaseLayer, ...]


@torch.no_grad()
def pack_base(decoder: Decoder, library: Library | None = None) -> PackedBase:
    """Packs a base into fresh memory.

    Args:
        decoder: the base.
        library: keeps exponents in few bits where that saves something; None keeps all weights whole.
    """
    pack = _packer(library)
    layers = tuple(_base_layer(decoder.layer(index), pack) for index in range(decoder.shape.n_layers))
    # A head that serves as embedding too is read by rows, which whole panels alone allow.
    head = pack_matrix(decoder.embed.weight) if decoder.lm_head is None else pack(decoder.lm_head.weight)
    return PackedBase(
        embedding_VD=None if decoder.lm_head is None else _plain(decoder.embed.weight),
        head=head,
        norm_D=decoder.norm.weight.float().clone(),
        layers=layers,
    )


@torch.no_grad()
def pack_expert(expert: Expert, library: Library | None = None) -> PackedExpert:
    """Packs an expert of any kind into fresh memory; ``library`` as for ``pack_base``."""
    pack = _packer(library)
    return PackedExpert(layers=tuple(_expert_layer(expert.layer(i), pack) for i in range(len(expert.layers))))


def poison(expert: PackedExpert) -> None:
    """Fills everything that is multiplied with NaN; integers by their scales, short exponents one by one."""
    tensors = []
    for layer in expert.layers:
        for one in matrices(layer.network):
            tensors.append(one.data if one.scales is None else one.scales)
            if one.short is not None:
                one.short.exponents.fill_(NAN_EXPONENT)
                one.short.others.fill_(NAN_EXPONENT)
        tensors += [layer.row_D] if layer.gate_row_D is None else [layer.row_D, layer.gate_row_D]
    fill_with_nan(tensors)


def matrices(network: PackedFfn | PackedFactors) -> Iterator[Packed]:
    """The matrices that belong to a network itself."""
    for name in network.__slots__:
        yield getattr(network, name)


def _packer(library: Library | None) -> _Pack:
    def pack(weight_OI: Tensor) -> Packed:
        breathe()
        short = None
        if library is not None and weight_OI.nbytes >= LEAST_SHORT_BYTES:
            short = shorten(weight_OI, library)
        return short or pack_matrix(weight_OI)

    return pack


def _base_layer(layer: DecoderLayer, pack: _Pack) -> PackedBaseLayer:
    attn = layer.attn
    return PackedBaseLayer(
        q=pack(attn.q.weight),
        k=pack(attn.k.weight),
        v=pack(attn.v.weight),
        o=pack(attn.o.weight),
        attn_norm_D=layer.attn_norm.weight.float().clone(),
        ffn_norm_D=layer.ffn_norm.weight.float().clone(),
        q_norm_Q=None if attn.q_norm is None else attn.q_norm.weight.float().clone(),
        k_norm_K=None if attn.k_norm is None else attn.k_norm.weight.float().clone(),
        public=PackedExpertLayer(
            network=_swiglu(layer.ffn, pack),
            row_D=layer.router.row.float().clone(),
            bias=0.0,
            gate_row_D=None,
            gate_bias=0.0,
        ),
    )


def _expert_layer(layer: ExpertLayer, pack: _Pack) -> PackedExpertLayer:
    gate, bias = layer.gate, layer.router.bias
    gate_row_D, gate_bias = None, 0.0
    if gate is not None:
        gate_row_D, folded = fold_gate(gate.weight, gate.bias, gate.mean, gate.scale)
        gate_bias = float(folded)
    return PackedExpertLayer(
        network=_network(layer, pack),
        row_D=layer.router.row.float().clone(),
        bias=0.0 if bias is None else min(0.0, float(bias)),
        gate_row_D=gate_row_D,
        gate_bias=gate_bias,
    )


def _network(layer: ExpertLayer, pack: _Pack) -> PackedFfn | PackedFactors:
    ffn = layer.ffn
    if isinstance(ffn, LowRankFfn):
        (gate_a, gate_b), (up_a, up_b) = _factors(ffn.gate), _factors(ffn.up)
        down_a, down_b = _factors(ffn.down)
        return PackedFactors(gate_a=gate_a, gate_b=gate_b, up_a=up_a, up_b=up_b, down_a=down_a, down_b=down_b)
    if isinstance(ffn, Int8Ffn):
        return PackedFfn(gate=_int8(ffn.gate), up=_int8(ffn.up), down=_int8(ffn.down))
    # Full, narrow and split networks stand on their own: nothing of the public one is read.
    gate_FD, up_FD, down_DF = layer.dense_ffn(SwiGLU(1, 1))
    return PackedFfn(gate=pack(gate_FD), up=pack(up_FD), down=pack(down_DF))


def _swiglu(ffn: SwiGLU, pack: _Pack) -> PackedFfn:
    return PackedFfn(gate=pack(ffn.gate.weight), up=pack(ffn.up.weight), down=pack(ffn.down.weight))


def _factors(factors: Factors) -> tuple[Packed, Packed]:
    return pack_matrix(factors.a), pack_matrix(factors.b)


def _int8(matrix: Int8Matrix) -> Packed:
    return pack_matrix(matrix.weight, scales_O=matrix.scale)


def _plain(weight_VD: Tensor) -> Tensor:
    """The embedding as it is where kernels can read that, else in fp32."""
    if weight_VD.dtype in (torch.float32, torch.bfloat16):
        return weight_VD.contiguous()
    return weight_VD.float()
