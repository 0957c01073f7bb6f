# SPDX-License-Identifier: Apache-2.0
"""Law 1: training an expert leaves the base byte-identical, without optimizer state for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensor_builders import VOCABULARY, random_decoder, tiny_shape
from tensor_worlds import World, worlds

from model_core.network.decoder import upcycle
from model_core.text.batches import PackedText
from model_core.training.objective import PairObjective
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import TrainingRun


def test_training_steps_change_the_expert_and_no_byte_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three real steps, with weight decay set against the recipe's advice: only the expert moves."""
    made: list[torch.optim.AdamW] = []
    plain_init = torch.optim.AdamW.__init__

    def remember(self: torch.optim.AdamW, *args: object, **settings: object) -> None:
        plain_init(self, *args, **settings)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", remember)
    decoder = random_decoder(tiny_shape(), seed=3)
    expert = upcycle(decoder, gated=True)
    base = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    own = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    rows = np.random.default_rng(0).integers(0, VOCABULARY, (12, 17)).astype(np.int32)
    recipe = TrainingRecipe(
        steps=3, batch_rows=2, sequence_tokens=16, warmup_share=0.0, weight_decay=0.1, precision="fp32"
    )
    objective = PairObjective(decoder, expert, logit_z_loss=1e-5, router_z_loss=1e-3)
    TrainingRun(
        objective, PackedText(rows_NS1=rows, tokens=rows.size, text_bytes=rows.size), recipe, seed=0
    ).train()

    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor.view(torch.uint8), base[name].view(torch.uint8)), name
    assert all(parameter.grad is None for parameter in decoder.parameters())
    (optimizer,) = made
    base_places = {parameter.data_ptr() for parameter in decoder.parameters()}
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert held
    assert not base_places & {parameter.data_ptr() for parameter in held | set(optimizer.state)}
    moved = {name for name, tensor in expert.state_dict().items() if not torch.equal(tensor, own[name])}
    assert moved == {name for name in own if ".ffn." in name or name.endswith("router.row")}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    world=worlds(max_experts=1, kinds=("full", "narrow", "low_rank", "split")),
    decay=st.sampled_from((0.0, 0.1)),
    accumulation=st.integers(1, 2),
)
def test_whatever_the_family_and_the_kind_only_the_expert_moves(
    world: World, decay: float, accumulation: int
) -> None:
    """Any shape, family, kind of expert and decay: base and gates keep their bytes, the rest moves."""
    (expert,) = world.experts.values()
    base = {name: tensor.clone() for name, tensor in world.decoder.state_dict().items()}
    own = {name: tensor.clone() for name, tensor in expert.state_dict().items()}
    rows = np.random.default_rng(world.seed).integers(0, VOCABULARY, (8, 13)).astype(np.int32)
    recipe = TrainingRecipe(
        steps=2,
        batch_rows=2,
        accumulation=accumulation,
        sequence_tokens=12,
        warmup_share=0.0,
        weight_decay=decay,
        precision="fp32",
    )
    objective = PairObjective(world.decoder, expert, logit_z_loss=1e-5, router_z_loss=1e-3)
    TrainingRun(
        objective, PackedText(rows_NS1=rows, tokens=rows.size, text_bytes=rows.size), recipe, seed=0
    ).train()
    for name, tensor in world.decoder.state_dict().items():
        assert torch.equal(tensor, base[name]), name
    assert all(parameter.grad is None for parameter in world.decoder.parameters())
    moved = {name for name, tensor in expert.state_dict().items() if not torch.equal(tensor, own[name])}
    wanted = {name for name in own if ".ffn." in name or name.endswith("router.row")}
    assert moved <= wanted
    assert {name for name in moved if name.endswith("router.row")}
    assert {name for name in moved if ".ffn." in name}
