# SPDX-License-Identifier: Apache-2.0
"""How far a written model folder is from the composition that is served, on given text.

The folder is opened and run, so everything that writing did to the numbers is in the figures. Knows neither
what was left out nor why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model_core.errors import ExportNotExact
from model_core.evaluation.bits import bits_per_byte, bits_per_document
from model_core.interop.reading_back import open_folder
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer

_TOKENS_PER_DOCUMENT = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The folder against the composition.

    Attributes:
        documents: how many were run.
        tokens: positions that were compared.
        max_logit: largest absolute difference of a logit.
        mean_kl_nats: mean divergence of the folder's next-token distribution from the composition's.
        bits_per_byte_served: of the documents under the composition.
        bits_per_byte_folder: of the same under the folder.
    """

    documents: int
    tokens: int
    max_logit: float
    mean_kl_nats: float
    bits_per_byte_served: float
    bits_per_byte_folder: float


@torch.inference_mode()
def measure(
    served: tuple[Decoder, Sequence[Expert], int],
    folder: Path,
    documents: Sequence[Document],
    tokenizer: TextTokenizer,
) -> Difference:
    """Runs both on the same text.

    Args:
        served: base, experts in canonical order, and experts per token.
        folder: the written model.
        documents: text; of each only the beginning.
        tokenizer: the base's.

    Raises:
        ExportNotExact: no document has a token.
    """
    decoder, experts, top_k = served
    layout, there, there_experts = open_folder(folder)
    max_logit, nats, tokens = 0.0, 0.0, 0
    limit = min(_TOKENS_PER_DOCUMENT, decoder.shape.max_positions)
    for document in documents:
        ids = [tokenizer.begin_id, *tokenizer.encode(document.text)][:limit]
        ids_1S = torch.tensor([ids])
        ours_SV = decoder(ids_1S, experts, top_k=top_k)[0].float()
        theirs_SV = there(ids_1S, there_experts, top_k=layout.top_k)[0].float()
        max_logit = max(max_logit, float((ours_SV - theirs_SV).abs().max()))
        ours_SV, theirs_SV = ours_SV.log_softmax(-1), theirs_SV.log_softmax(-1)
        nats += float((ours_SV.exp() * (ours_SV - theirs_SV)).sum())
        tokens += len(ids)
    if not tokens:
        raise ExportNotExact("There is no text to measure on; pass public documents.", reasons=["no text"])
    scored = [
        bits_per_byte(bits_per_document(model, documents, tokenizer, experts=others, top_k=k))
        for model, others, k in ((decoder, experts, top_k), (there, there_experts, layout.top_k))
    ]
    return Difference(
        documents=len(documents),
        tokens=tokens,
        max_logit=max_logit,
        mean_kl_nats=nats / tokens,
        bits_per_byte_served=scored[0],
        bits_per_byte_folder=scored[1],
    )
