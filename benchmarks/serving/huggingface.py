# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's two ways to generate over the same weights: ``generate`` and ``generate_batch``.

Both are set up as a competent user would: greedy, no early end, prompts of one length so that nothing is
padded, a cache of continuous batching sized for the job (its default takes most of the memory and minutes),
and whichever implementation of experts is faster. ``batched_mm`` gathers a copy of the weights for every
token and is never the faster one on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.serving.trace import Trace

Experts = Literal["eager", "grouped_mm"]
EXPERTS: tuple[Experts, ...] = ("eager", "grouped_mm")
_PAGE = 32
_BATCH_TOKENS = 1024


def open_folder(folder: Path) -> Any:
    """The model in a folder, in the format it was written in."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval()


def generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, *, experts: Experts) -> Trace:
    """One turn of ``generate``: a static batch.

    Args:
        model: transformers' model.
        prompts: token ids, all of one length.
        new_tokens: of each.
        experts: implementation of experts.
    """
    from transformers import StoppingCriteriaList

    moments: list[float] = []

    def note(ids: torch.Tensor, _scores: object, **_given: object) -> torch.Tensor:
        moments.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    model.set_experts_implementation(experts)
    began = time.perf_counter()
    ids_BS = torch.tensor([list(prompt) for prompt in prompts])
    made_BS = model.generate(
        ids_BS,
        attention_mask=torch.ones_like(ids_BS),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        stopping_criteria=StoppingCriteriaList([note]),
    )
    tokens = made_BS[:, ids_BS.shape[1] :].tolist()
    return Trace(
        began_s=began,
        moments_s=(tuple(moments),) * len(prompts),
        tokens=tuple(tuple(row) for row in tokens),
    )


def generate_batch(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, *, experts: Experts
) -> Trace:
    """One turn of ``generate_batch``: continuous batching. Making its cache is not counted.

    Args:
        model: transformers' model.
        prompts: token ids.
        new_tokens: of each, while all of them decode.
        experts: implementation of experts.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    budget = max(_BATCH_TOKENS, len(prompts))
    surplus = -(-len(prompts) * longest // (budget - len(prompts) + 1)) + 2
    pages = -(-(longest + new_tokens + surplus) // _PAGE) + 1
    config = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=len(prompts) * pages + 2,
        # There is a page for every token; prompts need not wait until a share of them is free.
        safety_margin=0.0,
        max_batch_tokens=budget,
        max_requests_per_batch=len(prompts),
        use_cuda_graph=False,
    )
    settings = {"max_new_tokens": new_tokens + surplus, "do_sample": False, "eos_token_id": -1}
    model.set_experts_implementation(experts)
    done = model.generate_batch(
        [list(prompt) for prompt in prompts],
        GenerationConfig.from_dict(settings | {"pad_token_id": 0}),
        continuous_batching_config=config,
        record_timestamps=True,
    )
    by_prompt = {tuple(output.prompt_ids): output for output in done.values()}
    outputs = [by_prompt[tuple(prompt)] for prompt in prompts]
    return Trace(
        began_s=min(output.lifespan[0] for output in outputs),
        moments_s=tuple(tuple(output.timestamps) for output in outputs),
        tokens=tuple(tuple(output.generated_tokens) for output in outputs),
    )
