# SPDX-License-Identifier: Apache-2.0
"""Training's way through a decoder by calling its modules, layer by layer, so that a layer can be recomputed.

It computes what ``Decoder.hidden`` computes. Wrappers that shard parameters hang on the modules' calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import LayerExperts, Plan, mix, plan_uniform
from model_core.network.router import prefix_mean


def head_of(decoder: Decoder) -> Tensor:
    """The output matrix ``[V, D]``."""
    return decoder.embed.weight if decoder.lm_head is None else decoder.lm_head.weight


def hidden_of(
    decoder: Decoder, experts: Sequence[Expert], ids_BS: Tensor, *, recompute: bool
) -> tuple[Tensor, Tensor]:
    """Normed hidden states under all given experts, and the router's z-loss.

    Args:
        decoder: the base.
        experts: what stands beside the public expert; all of them compute every token.
        ids_BS: token ids of whole rows.
        recompute: whether a layer's activations are made again in backward instead of kept.

    Returns:
        Hidden states ``[B, S, D]`` and the mean over layers of the squared log-sum-exp of router logits (0
        without experts).
    """
    n_all = 1 + len(experts)
    plan = plan_uniform(range(n_all), n_all, ids_BS.device, renormalise=decoder.shape.renormalise)
    x_BSD = decoder.embed(ids_BS)
    squares = []
    for index, panel in enumerate(decoder.panels(experts)):
        arguments = (decoder, index, panel, plan, x_BSD)
        if recompute and torch.is_grad_enabled():
            x_BSD, square = checkpoint(_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BSD, square = _layer(*arguments)
        squares.append(square)
    return decoder.norm(x_BSD), torch.stack(squares).mean()


def _layer(
    decoder: Decoder, index: int, panel: LayerExperts, plan: Plan, x_BSD: Tensor
) -> tuple[Tensor, Tensor]:
    layer, positions = decoder.layer(index), x_BSD.shape[1]
    cos_Sd, sin_Sd = decoder.rope_cos[:positions], decoder.rope_sin[:positions]
    h_BSD = layer.after_attention(x_BSD, layer.attn(layer.attention_input(x_BSD), cos_Sd, sin_Sd))
    inner_BSD = layer.mixture_input(h_BSD)
    needs_mean = panel.gated and plan.used != (0,)
    mean_TD = prefix_mean(inner_BSD).flatten(0, 1) if needs_mean else None
    mixed_TD, routing = mix(inner_BSD.flatten(0, 1), mean_TD, panel, plan)
    square = x_BSD.new_zeros(()) if routing is None else routing.logits[0].logsumexp(-1).square().mean()
    return layer.after_mixture(h_BSD, mixed_TD.view_as(h_BSD)), square
