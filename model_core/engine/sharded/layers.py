# SPDX-License-Identifier: Apache-2.0
"""The decoder and experts of one rank: its part of the weights, and sums over all ranks where needed.

Three things are exchanged in a layer: the squares that a norm over all heads needs, what attention writes
out, and what the mixture writes out. Everything else is either whole on every rank (norms, router, residual)
or needs only the rank's own part. So the runner of a rank is any runner that computes with modules, and does
not know that there are others. Which part it is, and how ranks are connected, is said from outside.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.engine.sharded.exchange import Exchange
from model_core.engine.sharded.slices import Part, part_form, part_shape
from model_core.network.attention import Attention, rotary_tables
from model_core.network.decoder import Decoder, DecoderLayer
from model_core.network.expert import Expert, ExpertLayer
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import ModelShape


class _SummedLinear(nn.Linear):
    """A matrix of which every rank holds some columns."""

    exchange: Exchange

    def forward(self, x: Tensor) -> Tensor:
        return self.exchange.sum(F.linear(x, self.weight))


class PartAttention(Attention):
    """Attention over a rank's own heads.

    Args:
        whole: sizes of the whole decoder.
        part: which rank this is.
        exchange: sums over ranks.
    """

    def __init__(self, whole: ModelShape, part: Part, exchange: Exchange) -> None:
        super().__init__(part_shape(whole, part))
        self.o = _SummedLinear(self.o.in_features, self.o.out_features, bias=False)
        self.o.exchange = exchange
        self._whole_widths = (whole.n_heads * whole.head_dim, whole.n_kv_heads * whole.head_dim)
        self._exchange = exchange

    def normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, normed over the heads of all ranks."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        squares = torch.stack([part.float().square().sum(-1) for part in (q, k)], dim=-1)
        sums = self._exchange.sum(squares)
        q_width, k_width = self._whole_widths
        return self.q_norm.by(q, sums[..., :1] / q_width), self.k_norm.by(k, sums[..., 1:] / k_width)


class PartLayer(DecoderLayer):
    """A layer whose attention and mixture are summed over ranks.

    Args:
        whole: sizes of the whole decoder.
        part: which rank this is.
        exchange: sums over ranks.
    """

    def __init__(self, whole: ModelShape, part: Part, exchange: Exchange) -> None:
        super().__init__(part_shape(whole, part))
        self.attn = PartAttention(whole, part, exchange)
        self._exchange = exchange

    def after_mixture(self, h: Tensor, mixed: Tensor) -> Tensor:
        """The residual that leaves the layer; ``mixed`` is the rank's part of the mixture's output."""
        return super().after_mixture(h, self._exchange.sum(mixed))


class PartDecoder(Decoder):
    """What one rank holds of a base; its logits are those of its part of the vocabulary.

    Args:
        whole: sizes of the whole decoder.
        part: which rank this is.
        exchange: sums over ranks.
    """

    def __init__(self, whole: ModelShape, part: Part, exchange: Exchange) -> None:
        super().__init__(part_shape(whole, part))
        self.layers = nn.ModuleList(PartLayer(whole, part, exchange) for _ in range(whole.n_layers))
        self._words = part.of(whole.vocab_size)
        if self.lm_head is not None:
            n_words = self._words.stop - self._words.start
            self.lm_head = nn.Linear(whole.d_model, n_words, bias=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V of this rank]`` of normed hidden states."""
        if self.lm_head is not None:
            return F.linear(hidden, self.lm_head.weight)
        return F.linear(hidden, self.embed.weight[self._words])


class PartExpert(Expert):
    """What one rank holds of an expert.

    Args:
        whole: form of the whole expert's networks.
        part: which rank this is.
        n_layers: layers of the base.
        d_model: width of the base's residual stream.
        gated: whether it has domain gates.
    """

    def __init__(self, whole: FfnForm, part: Part, *, n_layers: int, d_model: int, gated: bool) -> None:
        # Not what Expert does: a part may be narrower than a whole expert of its rank is allowed to be.
        nn.Module.__init__(self)
        self.form = part_form(whole, part)
        self.layers = nn.ModuleList(ExpertLayer(d_model, self.form, gated=gated) for _ in range(n_layers))


def load_base_part(
    tensors: Mapping[str, Tensor], whole: ModelShape, part: Part, exchange: Exchange, device: torch.device
) -> PartDecoder:
    """A rank's decoder around its tensors, which are not copied on a CPU (see ``slices.base_slices``)."""
    with torch.device("meta"):
        decoder = PartDecoder(whole, part, exchange)
    decoder.load_state_dict(dict(tensors), assign=True)
    decoder.rope_cos, decoder.rope_sin = rotary_tables(whole)
    return decoder.requires_grad_(False).eval().to(device)


def load_expert_part(
    tensors: Mapping[str, Tensor] | None,
    form: FfnForm,
    whole: ModelShape,
    part: Part,
    *,
    gated: bool,
    device: torch.device,
) -> PartExpert:
    """A rank's part of an expert around its tensors (see ``slices.expert_slices``); None leaves it unset."""
    with torch.device("meta"):
        expert = PartExpert(form, part, n_layers=whole.n_layers, d_model=whole.d_model, gated=gated)
    if tensors is None:
        expert = expert.to_empty(device="cpu")
    else:
        expert.load_state_dict(dict(tensors), assign=True)
    return expert.requires_grad_(False).eval().to(device)
