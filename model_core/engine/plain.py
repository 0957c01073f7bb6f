# SPDX-License-Identifier: Apache-2.0
"""Generation of one sequence without cache or batch: slow, short, and what the engine is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from model_core.engine.requests import Sampling
from model_core.engine.sampling import draw, uniform
from model_core.network.bank import ExpertBank, forward_logits


@torch.inference_mode()
def generate(
    bank: ExpertBank,
    prompt_ids: Sequence[int],
    experts: Iterable[str],
    top_k: int,
    sampling: Sampling,
) -> list[int]:
    """Continues one prompt, computing everything anew for every token.

    Args:
        bank: weights.
        prompt_ids: token ids, at least one.
        experts: bundle digests beside the public expert.
        top_k: experts per token, the public one counted.
        sampling: as in the engine; the same settings and seed draw the same tokens (where ``seed`` is None
            the engine draws by the request id; here that id is empty).

    Returns:
        New token ids, a stop token included.

    Raises:
        ExpertNotResident: an expert is not in the bank.
    """
    chosen, ids = tuple(experts), list(prompt_ids)
    for index in range(sampling.max_tokens):
        logits_1V = forward_logits(bank, ids, chosen, top_k)[-1:].float()
        token = int(draw(logits_1V, [sampling], [uniform(sampling.seed, "", index)])[0])
        ids.append(token)
        if token in sampling.stop_ids or len(ids) == bank.shape.max_positions:
            break
    return ids[len(prompt_ids) :]
