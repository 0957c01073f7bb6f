# SPDX-License-Identifier: Apache-2.0
"""The two sides: our ``TrainingRun``, and Hugging Face ``Trainer`` on ``FlexOlmoForCausalLM``.

Both train the same set: one expert's networks and router rows beside a frozen public model, k = n = 2, AdamW
(fused), weight decay 0, clipping at 1. transformers holds the experts of a layer in one tensor, so its user
must train the whole tensor and put the public half of each gradient to zero; that is done here as cheaply as
it can be, after accumulation and in place. Each side calls ``pause`` after every optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.training.case import Case
from model_core.network.decoder import Decoder, upcycle
from model_core.training.base import draw_weights
from model_core.training.objective import PairObjective
from model_core.training.recipe import TrainingRecipe
from model_core.training.run import TrainingRun

# Called after every optimizer step; True ends the training.
Pause = Callable[[], bool]
ExpertsPath = Literal["eager", "grouped_mm"]
_FOREVER = 100_000


def train_ours(case: Case, pause: Pause) -> None:
    """Trains until told to end."""
    decoder = Decoder(case.shape)
    draw_weights(decoder, seed=1)
    expert = upcycle(decoder)
    recipe = TrainingRecipe(
        steps=_FOREVER,
        batch_rows=case.rows,
        sequence_tokens=case.positions,
        learning_rate=1e-3,
        precision=case.number_format,
        checkpoint_every=_FOREVER,
    )
    objective = PairObjective(
        decoder, expert, logit_z_loss=recipe.logit_z_loss, router_z_loss=recipe.router_z_loss
    )
    TrainingRun(objective, case.packed(), recipe, seed=0).train(stop=pause)


def train_theirs(case: Case, pause: Pause, *, experts: ExpertsPath = "eager") -> None:
    """Trains until told to end, with transformers' own loop.

    Args:
        case: the setting.
        pause: called after every optimizer step.
        experts: which of transformers' implementations computes the experts.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()

    class Turns(TrainerCallback):
        def on_step_end(self, _args: Any, _state: Any, control: Any, **_given: Any) -> Any:
            control.should_training_stop = pause()
            return control

    arguments = TrainingArguments(
        output_dir="build/bench-training",
        per_device_train_batch_size=case.rows,
        max_steps=_FOREVER,
        learning_rate=1e-3,
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=case.number_format == "bf16",
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    rows = torch.from_numpy(case.packed().rows_NS1[:, :-1]).long()
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    model = flex_olmo(case, experts)
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Turns()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def flex_olmo(case: Case, experts: ExpertsPath) -> nn.Module:
    """A two-expert model as transformers holds it, of which expert 1 and its router row alone learn."""
    from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

    torch.manual_seed(0)
    model: Any = FlexOlmoForCausalLM(
        FlexOlmoConfig(
            vocab_size=case.vocabulary,
            hidden_size=case.width,
            intermediate_size=case.inner,
            num_hidden_layers=case.layers,
            num_attention_heads=case.heads,
            num_key_value_heads=case.heads,
            max_position_embeddings=case.positions,
            rms_norm_eps=1e-6,
            num_experts=2,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            use_cache=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    model.set_experts_implementation(experts)
    for name, parameter in model.named_parameters():
        trained = ".mlp.experts." in name or ".mlp.gate." in name
        parameter.requires_grad_(trained)
        if trained:
            parameter.register_post_accumulate_grad_hook(_forget_public)
    whole: nn.Module = model
    return whole


def _forget_public(parameter: torch.Tensor) -> None:
    if parameter.grad is not None:
        parameter.grad[0].zero_()
