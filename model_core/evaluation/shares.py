# SPDX-License-Identifier: Apache-2.0
"""Who computed what: the mean routing weight of every expert, per layer, over some text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import Routing
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer


def routing_shares(
    decoder: Decoder,
    experts: Sequence[Expert],
    documents: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    top_k: int | None = None,
    max_tokens: int = 1024,
) -> Tensor:
    """Mean weight of each expert per layer, weights of a token divided by their sum.

    Args:
        decoder: the base.
        experts: in canonical order.
        documents: text; each is cut to ``max_tokens``.
        tokenizer: the base's.
        top_k: experts per token.
        max_tokens: longest sequence.

    Returns:
        ``[layers, 1 + experts]``, rows sum to 1; the public expert is column 0.
    """
    n_layers = decoder.shape.n_layers
    total_LE = torch.zeros(n_layers, 1 + len(experts), dtype=torch.float64)

    def watch(layer: int, _h_BSD: Tensor, routing: Routing | None) -> None:
        if routing is None:
            total_LE[layer, 0] += _h_BSD.shape[0] * _h_BSD.shape[1]
            return
        weights_TE = routing.weights_TE.double()
        total_LE[layer] += (weights_TE / weights_TE.sum(-1, keepdim=True)).sum(0).cpu()

    limit = min(max_tokens, decoder.shape.max_positions)
    with torch.no_grad():
        for document in documents:
            ids = [tokenizer.begin_id, *tokenizer.encode(document.text)][:limit]
            ids_1S = torch.tensor([ids], device=decoder.embed.weight.device)
            decoder.hidden(ids_1S, experts, top_k=top_k, observe=watch)
    return total_LE / total_LE.sum(-1, keepdim=True)
