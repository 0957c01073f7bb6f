# SPDX-License-Identifier: Apache-2.0
"""The decoder of all families, with a mixture in the place of each feed-forward network.

In OLMo-2 and FlexOlmo norms stand after attention and after the mixture, so that attention, router, gates
and experts read the raw residual stream; in Llama and OLMoE they stand before, and all of these read the
normed stream::

    olmo2:         h = x + attn_norm(attn(x))        y = h + ffn_norm(mixture(h))
    llama, olmoe:  h = x + attn(attn_norm(x))        y = h + mixture(ffn_norm(h))

``DecoderLayer`` alone knows which. Without experts the decoder is the dense public model. The names of its
``state_dict`` are the tensor names of ``base.safetensors``. This file runs whole sequences (training,
evaluation, proofs); the engine runs the same layers around its own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.network.attention import Attention, rotary_tables
from model_core.network.expert import Expert, RouterRow, layer_experts
from model_core.network.ffn import SwiGLU
from model_core.network.mixture import LayerExperts, Plan, Routing, mix, plan_uniform
from model_core.network.norm import norm_of
from model_core.network.router import prefix_mean
from model_core.packing.manifest import ModelShape

# Called per layer with its index, the stream [B, S, D] that enters its mixture (what router, gates and
# experts read), and the routing (rows are B * S; None where only the public expert is allowed).
Observer = Callable[[int, Tensor, Routing | None], None]


class DecoderLayer(nn.Module):
    """One layer: attention, the public expert and its router row, and two norms.

    Args:
        shape: sizes of the decoder.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attn = Attention(shape)
        self.attn_norm = norm_of(shape, shape.d_model)
        self.ffn = SwiGLU(shape.d_model, shape.d_ffn)
        self.ffn_norm = norm_of(shape, shape.d_model)
        self.router = RouterRow(shape.d_model, biased=False)
        self.norm_before = shape.norm_before

    def attention_input(self, x: Tensor) -> Tensor:
        """What attention reads of the residual that enters the layer."""
        normed: Tensor = self.attn_norm(x) if self.norm_before else x
        return normed

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual between attention and mixture."""
        added: Tensor = attended if self.norm_before else self.attn_norm(attended)
        return x + added

    def mixture_input(self, h: Tensor) -> Tensor:
        """What router, gates and experts read of the residual after attention."""
        normed: Tensor = self.ffn_norm(h) if self.norm_before else h
        return normed

    def after_mixture(self, h: Tensor, mixed: Tensor) -> Tensor:
        """The residual that leaves the layer."""
        added: Tensor = mixed if self.norm_before else self.ffn_norm(mixed)
        return h + added


class Decoder(nn.Module):
    """The public model, and with experts passed to ``forward`` a mixture of it with them.

    Args:
        shape: its sizes.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        # Zeros until drawn or loaded: torch's own draw loads its compiler first where no memory is behind.
        zeros_VD = torch.zeros(shape.vocab_size, shape.d_model)
        self.embed = nn.Embedding(shape.vocab_size, shape.d_model, _weight=zeros_VD)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.n_layers))
        self.norm = norm_of(shape, shape.d_model)
        self.lm_head = (
            None if shape.tie_embeddings else nn.Linear(shape.d_model, shape.vocab_size, bias=False)
        )
        cos, sin = rotary_tables(shape)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def layer(self, index: int) -> DecoderLayer:
        """One layer by index."""
        part = self.layers[index]
        assert isinstance(part, DecoderLayer)  # noqa: S101  (a ModuleList forgets its members' type)
        return part

    @torch.no_grad()
    def init_weights(self, *, seed: int, std: float = 0.02) -> None:
        """Draws fresh weights: normal matrices and embeddings, norms 1, public router row 0.

        Args:
            seed: of the draw; the same seed gives the same bytes on one torch build.
            std: standard deviation.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(
                    0.0, std, generator=generator
                )
                parameter.copy_(draw)
            else:
                parameter.fill_(0.0 if name.endswith("router.row") else 1.0)

    def hidden(
        self,
        ids_BS: Tensor,
        experts: Sequence[Expert] = (),
        *,
        top_k: int | None = None,
        renormalise: bool | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Hidden states after the final norm; arguments as in ``forward``. Returns ``[B, S, D]``."""
        panels = self.panels(experts)
        n_all = 1 + len(experts)
        renormalise = self.shape.renormalise if renormalise is None else renormalise
        plan = plan_uniform(range(n_all), top_k or n_all, ids_BS.device, renormalise=renormalise)
        return self.run(ids_BS, panels, plan, observe=observe)

    def forward(
        self,
        ids_BS: Tensor,
        experts: Sequence[Expert] = (),
        *,
        top_k: int | None = None,
        renormalise: bool | None = None,
        observe: Observer | None = None,
    ) -> Tensor:
        """Logits of whole sequences that start at position 0.

        Args:
            ids_BS: token ids.
            experts: experts beside the public one, in canonical order.
            top_k: experts per token, the public one counted; None means all.
            renormalise: whether the chosen experts' weights are divided by their sum; None takes the shape's.
            observe: called in every layer with what enters its mixture, and the routing.

        Returns:
            Logits ``[B, S, V]``.
        """
        return self.logits(
            self.hidden(ids_BS, experts, top_k=top_k, renormalise=renormalise, observe=observe)
        )

    def panels(self, experts: Sequence[Expert]) -> list[LayerExperts]:
        """What each layer routes to: the public expert, then the given ones in the given order."""
        panels = []
        for index in range(self.shape.n_layers):
            layer = self.layer(index)
            others = [expert.layer(index) for expert in experts]
            panels.append(layer_experts(layer.router.row, layer.ffn, others))
        return panels

    def run(
        self, ids_BS: Tensor, panels: Sequence[LayerExperts], plan: Plan, *, observe: Observer | None = None
    ) -> Tensor:
        """Runs whole sequences through given panels under a plan; returns normed hidden states."""
        n_positions = ids_BS.shape[1]
        cos_Sd, sin_Sd = self.rope_cos[:n_positions], self.rope_sin[:n_positions]
        x_BSD = self.embed(ids_BS)
        for index, panel in enumerate(panels):
            layer = self.layer(index)
            attended_BSD = layer.attn(layer.attention_input(x_BSD), cos_Sd, sin_Sd)
            h_BSD = layer.after_attention(x_BSD, attended_BSD)
            inner_BSD = layer.mixture_input(h_BSD)
            needs_mean = panel.gated and plan.used != (0,)
            mean_TD = prefix_mean(inner_BSD).flatten(0, 1) if needs_mean else None
            mixed_TD, routing = mix(inner_BSD.flatten(0, 1), mean_TD, panel, plan)
            if observe is not None:
                observe(index, inner_BSD, routing)
            x_BSD = layer.after_mixture(h_BSD, mixed_TD.view_as(h_BSD))
        normed: Tensor = self.norm(x_BSD)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of normed hidden states ``[..., D]``."""
        weight = self.embed.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight)


def upcycle(decoder: Decoder, *, gated: bool = False) -> Expert:
    """A new expert that starts as a copy of the public one in every layer (same router row, bias 0).

    Beside the public expert with k = 2 it leaves the model's function as it was (FlexOlmo section 3.3.1).

    Args:
        decoder: the public model; it is not changed.
        gated: whether the expert gets domain gates (weight 0).
    """
    shape = decoder.shape
    expert = Expert(n_layers=shape.n_layers, d_model=shape.d_model, d_ffn=shape.d_ffn, gated=gated)
    with torch.no_grad():
        for index in range(shape.n_layers):
            source, part = decoder.layer(index), expert.layer(index)
            part.ffn.load_state_dict(source.ffn.state_dict())
            part.router.row.copy_(source.router.row)
    return expert.to(dtype=decoder.embed.weight.dtype, device=decoder.embed.weight.device)
