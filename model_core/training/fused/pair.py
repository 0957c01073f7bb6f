# SPDX-License-Identifier: Apache-2.0
"""The two-expert model of coordinated training: the frozen public network and one trained beside it.

The same function as ``Decoder.hidden(ids, (expert,), top_k=2)``, made of this folder's kernels. It asks for
no gradient of anything frozen; below the first trained tensor nothing is kept for backward at all. Networks
that are not a plain SwiGLU run as they are between the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model_core.network.attention import Attention
from model_core.network.decoder import Decoder, DecoderLayer
from model_core.network.expert import Expert, ExpertLayer, layer_experts
from model_core.network.ffn import SwiGLU
from model_core.network.norm import RMSNorm
from model_core.network.router import prefix_mean, router_logits, softmax
from model_core.training.fused.attention import causal_attention
from model_core.training.fused.ffn import mix_two, swiglu
from model_core.training.fused.norm import frozen_norm, norm_rotate
from model_core.training.fused.weights import FrozenWeights, product_dtype


class FusedPair:
    """Runs whole rows through the public network and one expert.

    Args:
        decoder: the base, frozen.
        expert: the owner's expert.
        recompute: whether a layer's activations are made again in backward instead of kept.
    """

    def __init__(self, decoder: Decoder, expert: Expert, *, recompute: bool = False) -> None:
        self.decoder, self.expert, self.recompute = decoder, expert, recompute
        self.frozen = FrozenWeights()

    def hidden(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states after the final norm, fp32 ``[B, S, D]``, and the router's z-loss (mean of layers).

        The z-loss is the mean squared log-sum-exp of the router's two logits.
        """
        x_BSD = F.embedding(ids_BS, self.decoder.embed.weight).float()
        squares = []
        for index in range(self.decoder.shape.n_layers):
            run: Callable[[Tensor], tuple[Tensor, Tensor]] = _Layer(self, index)
            if self.recompute and torch.is_grad_enabled():
                x_BSD, square = checkpoint(run, x_BSD, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BSD, square = run(x_BSD)
            squares.append(square)
        return self._norm(self.decoder.norm, x_BSD), torch.stack(squares).mean()

    def head(self) -> Tensor:
        """The frozen output matrix ``[V, D]`` in the products' format."""
        head = self.decoder.lm_head
        weight = self.decoder.embed.weight if head is None else head.weight
        return self.frozen.of(weight, product_dtype(weight.device))

    @staticmethod
    def _norm(norm: RMSNorm, x_BSD: Tensor, residual_BSD: Tensor | None = None) -> Tensor:
        return frozen_norm(x_BSD, norm.weight.detach().float(), norm.eps, residual_BSD)


class _Layer:
    """One layer of the pair as a function of the residual stream."""

    def __init__(self, pair: FusedPair, index: int) -> None:
        self.pair = pair
        self.layer: DecoderLayer = pair.decoder.layer(index)
        self.own: ExpertLayer = pair.expert.layer(index)

    def __call__(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The residual that leaves the layer, and the mean squared log-sum-exp of its router logits."""
        layer, norm = self.layer, self.pair._norm
        dtype = product_dtype(x_BSD.device)
        if layer.norm_before:
            h_BSD = x_BSD + self._attention(norm(layer.attn_norm, x_BSD).to(dtype))
            read_BSD = norm(layer.ffn_norm, h_BSD)
            mixed_BSD, square = self._mixture(read_BSD, dtype)
            return h_BSD + mixed_BSD, square
        h_BSD = norm(layer.attn_norm, self._attention(x_BSD.to(dtype)), x_BSD)
        mixed_BSD, square = self._mixture(h_BSD, dtype)
        return norm(layer.ffn_norm, mixed_BSD, h_BSD), square

    def _attention(self, x_BSD: Tensor) -> Tensor:
        attn: Attention = self.layer.attn
        frozen, dtype = self.pair.frozen, x_BSD.dtype
        cos_Sd = self.pair.decoder.rope_cos[: x_BSD.shape[1]]
        sin_Sd = self.pair.decoder.rope_sin[: x_BSD.shape[1]]
        q, k, v = (F.linear(x_BSD, frozen.of(part.weight, dtype)) for part in (attn.q, attn.k, attn.v))
        turned = []
        for part, norm in ((q, attn.q_norm), (k, attn.k_norm)):
            weight = None if norm is None else norm.weight.detach().float()
            turned.append(norm_rotate(part, weight, 0.0 if norm is None else norm.eps, cos_Sd, sin_Sd))
        q, k, v = (part.view(*part.shape[:2], -1, attn.head_dim) for part in (*turned, v))
        groups = attn.n_heads // attn.n_kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
        return F.linear(causal_attention(q, k, v).flatten(-2), frozen.of(attn.o.weight, dtype))

    def _mixture(self, h_BSD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        layer, own, frozen = self.layer, self.own, self.pair.frozen
        h_TD = h_BSD.flatten(0, 1)
        low_TD = h_TD.to(dtype)
        public = layer.ffn
        public_TD = swiglu(
            low_TD,
            frozen.of(public.gate.weight, dtype),
            frozen.of(public.up.weight, dtype),
            frozen.of(public.down.weight, dtype),
        )
        if type(own.ffn) is SwiGLU:
            own_TD = swiglu(low_TD, own.ffn.gate.weight, own.ffn.up.weight, own.ffn.down.weight)
        else:
            own_TD = own.ffn.beside(public)(low_TD)
        logits_T2 = self._router_logits(h_BSD, h_TD)
        mixed_TD = mix_two(softmax(logits_T2), public_TD, own_TD)
        return mixed_TD.view_as(h_BSD), logits_T2.logsumexp(-1).square().mean()

    def _router_logits(self, h_BSD: Tensor, h_TD: Tensor) -> Tensor:
        panel = layer_experts(self.layer.router.row, self.layer.ffn, [self.own])
        if panel.gated:
            return router_logits(h_TD, prefix_mean(h_BSD).flatten(0, 1), panel.rows)
        with torch.autocast(h_TD.device.type, enabled=False):
            return torch.addmm(panel.rows.biases_E, h_TD, panel.rows.rows_ED.t())


def supported(decoder: Decoder) -> bool:
    """Whether the kernels cover a base: not where queries, keys and values are clipped."""
    return all(decoder.layer(index).attn.clip is None for index in range(decoder.shape.n_layers))
