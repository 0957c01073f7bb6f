# SPDX-License-Identifier: Apache-2.0
"""Steps by torch over slots, decode steps captured: the runner for CUDA.

Batches of single tokens run in a few fixed shapes, each captured when it first comes; a recomposition or a
new expert captures nothing anew. Steps that hold prompts run as they come, over the same slots. Inputs go to
the device in one copy, logits and shares come back in one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.engine.capture import Capturer, Compute
from model_core.engine.decode_step import DecodeStep, StepShape
from model_core.engine.grouped import combine
from model_core.engine.runner import Piece, StepResult
from model_core.engine.slots import SlotWeights
from model_core.engine.torch_runner import TorchRunner
from model_core.network.bank import ExpertBank
from model_core.network.mixture import LayerExperts

# Captured steps that are kept; the one that was not used for longest goes first.
_KEPT_STEPS = 48


class SlotRunner(TorchRunner):
    """Steps over one bank on a device (see ``runner.Runner``).

    Args:
        bank: weights, on CPU; what they are copied to is here.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        page_size: positions in a page.
        device: where to compute.
        capturer: of decode steps; None computes them as they come.

    Attributes:
        captured: steps that were captured so far.
    """

    # Rows that a fixed shape does not need write into a page of nobody.
    _spare_pages = 1
    _one_by_one = False

    def __init__(
        self,
        bank: ExpertBank,
        *,
        n_pages: int,
        n_tails: int,
        page_size: int = 16,
        device: torch.device,
        capturer: Capturer | None = None,
    ) -> None:
        self._slots = SlotWeights(bank, device)
        super().__init__(bank, n_pages=n_pages, n_tails=n_tails, page_size=page_size, weights=self._slots)
        # Experts that take turns have to tell the host how many rows they have, which no capture can.
        self._capturer = capturer if self._slots.grouped else None
        self._steps: OrderedDict[StepShape, tuple[DecodeStep, Compute]] = OrderedDict()
        self._generation = self._slots.generation
        self.captured = 0

    @torch.inference_mode()
    def run(self, pieces: Sequence[Piece]) -> StepResult:
        """Computes pieces in one batch; nothing counts until ``keep``."""
        if any(len(piece.ids) > 1 for piece in pieces):
            result = super().run(pieces)
            both_BX = torch.cat((result.logits_BV, result.shares_BE.float()), dim=-1).cpu()
            return _split(both_BX, self.bank.shape.vocab_size)
        gated = any(panel.gated for panel in self._slots.panels())
        if gated:
            self._want_page_sums()
        step, repeat = self._step(StepShape.of(pieces, page_size=self.page_size, gated=gated))
        step.fill(pieces)
        if repeat is None:
            repeat = self._capture(step)
        both_BX, *sums = repeat()
        self._sums_LBD = sums[0] if sums else None
        result = _split(both_BX[: len(pieces)].to("cpu", copy=True), self.bank.shape.vocab_size)
        shares_BE = torch.zeros(len(pieces), len(self.bank.names()), dtype=torch.float64)
        for row, piece in enumerate(pieces):
            shares_BE[row, list(piece.columns)] = result.shares_BE[row, : len(piece.columns)]
        return StepResult(logits_BV=result.logits_BV, shares_BE=shares_BE)

    def refresh(self) -> None:
        """Takes over what the bank holds now; captured steps stay, unless the stacks had to grow."""
        super().refresh()
        if self._slots.generation != self._generation:
            self._steps.clear()
            self._generation = self._slots.generation

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _step(self, shape: StepShape) -> tuple[DecodeStep, Compute | None]:
        found = self._steps.get(shape)
        if found is not None:
            self._steps.move_to_end(shape)
            return found
        renormalise = self.bank.shape.renormalise
        return DecodeStep(shape, self, self._slots, renormalise=renormalise, device=self._device), None

    def _capture(self, step: DecodeStep) -> Compute:
        """What computes a step from now on; captured where that is possible."""
        repeat: Compute = step.compute
        if self._capturer is not None:
            try:
                repeat = self._capturer.capture(step.compute)
                self.captured += 1
            except RuntimeError:
                # Something in the step cannot be captured on this device; nor will it be the next time.
                self._capturer = None
        self._steps[step.shape] = (step, repeat)
        if len(self._steps) > _KEPT_STEPS:
            self._steps.popitem(last=False)
        return repeat

    def _combine(
        self, index: int, panel: LayerExperts, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor
    ) -> Tensor:
        n_experts, capacity = len(panel.ffns), self._slots.capacity
        slots_TK = self._slots.slots_E[experts_TK.clamp(max=n_experts - 1)]
        slots_TK = torch.where(experts_TK < n_experts, slots_TK, capacity)
        return combine(x_TD, slots_TK, weights_TK, self._slots.ffns(index), capacity)


def _split(both_BX: Tensor, n_tokens: int) -> StepResult:
    return StepResult(logits_BV=both_BX[:, :n_tokens].contiguous(), shares_BE=both_BX[:, n_tokens:].double())
