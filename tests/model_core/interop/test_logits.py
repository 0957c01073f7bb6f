# SPDX-License-Identifier: Apache-2.0
"""Imported models against the reference implementations: same logits, same cached steps, same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_builders import ARCHITECTURES, VOCABULARY, bring_in, imported_bank, random_model
from tensor_builders import drain, request, tokens

from model_core.engine.engine import Engine
from model_core.network.bank import forward_logits

CONFIGURATIONS = 40
NEW_TOKENS = 4


@pytest.mark.parametrize(
    ("architecture", "seed"),
    [
        (architecture, seed)
        for architecture in ARCHITECTURES
        for seed in range(CONFIGURATIONS if architecture != "MixtralForCausalLM" else CONFIGURATIONS // 2)
    ],
)
def test_an_imported_model_computes_what_the_reference_computes(
    architecture: str, seed: int, tmp_path: Path
) -> None:
    """Whole, padded on the left, and cached token by token: logits within 1e-4, greedy tokens equal."""
    model = random_model(architecture, seed)
    result = bring_in(model, tmp_path)
    bank = imported_bank(result)
    chosen = [bundle.digest for bundle in result.experts]
    generator = torch.Generator().manual_seed(seed)
    long, short = 13, 1 + seed % 12
    ids_BS = torch.randint(1, VOCABULARY, (2, long), generator=generator)
    mask_BS = torch.ones_like(ids_BS)
    mask_BS[1, : long - short] = 0
    theirs, continued, chances = _reference(model, ids_BS, mask_BS)
    prompts = [ids_BS[0].tolist(), ids_BS[1, long - short :].tolist()]
    for row, prompt in enumerate(prompts):
        ours = forward_logits(bank, prompt, chosen, result.layout.top_k)
        assert _close(ours, theirs[row, -len(prompt) :])
    engine = Engine(bank, max_sequences=2, max_context=32, prefill_tokens=5)
    events = drain(
        engine,
        [
            request(bank, str(row), prompt, chosen, result.layout.top_k, max_tokens=NEW_TOKENS)
            for row, prompt in enumerate(prompts)
        ],
    )
    for row in range(2):
        assert tokens(events[str(row)]) == continued[row]
        assert [event.logprob for event in events[str(row)]] == pytest.approx(chances[row], abs=1e-4)


@torch.no_grad()
def _reference(
    model: Any, ids_BS: torch.Tensor, mask_BS: torch.Tensor
) -> tuple[torch.Tensor, list[list[int]], list[list[float]]]:
    """Logits of the prompts, and greedy tokens by the reference's own cache with their log-probabilities."""
    places_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=ids_BS, attention_mask=mask_BS, position_ids=places_BS, use_cache=True)
    logits, found, chances = out.logits, [], []
    for _ in range(NEW_TOKENS):
        best_B1 = out.logits[:, -1].log_softmax(-1).max(-1, keepdim=True)
        found.append(best_B1.indices)
        chances.append(best_B1.values)
        mask_BS = torch.cat((mask_BS, torch.ones_like(best_B1.indices)), -1)
        out = model(
            input_ids=best_B1.indices,
            attention_mask=mask_BS,
            position_ids=mask_BS.sum(-1, keepdim=True) - 1,
            past_key_values=out.past_key_values,
            use_cache=True,
        )
    return logits, torch.cat(found, -1).tolist(), torch.cat(chances, -1).tolist()


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
