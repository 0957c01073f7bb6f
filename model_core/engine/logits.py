# SPDX-License-Identifier: Apache-2.0
"""Passes over whole rows of logits: copies, sums, the largest, weights and log-probabilities.

On CPU the calling thread computes them alone, through numpy. Torch would share the rows of a batch out to
threads of its own, which go on watching for work for milliseconds afterwards, on the very cores that the
threads of the next step need: steps of 8 and more sequences took up to twice as long. Every row is summed by
itself, so no bit of it depends on how many there are. Elsewhere torch computes. Knows no settings, no draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def rows_of(part_BX: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows; the tensor itself where all of them are asked for in order, else a copy."""
    if list(rows) == list(range(part_BX.shape[0])):
        return part_BX
    if _on_cpu(part_BX):
        return torch.from_numpy(part_BX.numpy()[list(rows)])
    return part_BX[torch.tensor(rows, device=part_BX.device)]


def copied(part_BX: Tensor) -> Tensor:
    """A copy."""
    return torch.from_numpy(part_BX.numpy().copy()) if _on_cpu(part_BX) else part_BX.clone()


def finite_rows(logits_BV: Tensor) -> list[bool]:
    """Whether every number of each row is finite: a sum is only if every part of it is."""
    if not _on_cpu(logits_BV):
        return torch.isfinite(logits_BV.sum(-1)).tolist()
    with np.errstate(all="ignore"):
        finite_B: list[bool] = np.isfinite(logits_BV.numpy().sum(-1)).tolist()
    return finite_B


def largest(logits_BV: Tensor) -> Tensor:
    """The first of the largest logits of each row ``[B]``."""
    return torch.from_numpy(logits_BV.numpy().argmax(-1)) if _on_cpu(logits_BV) else logits_BV.argmax(-1)


def weights_at(logits_BV: Tensor, temperature_B1: Tensor) -> Tensor:
    """What each token weighs at a temperature, the likeliest 1 ``[B, V]``."""
    if not _on_cpu(logits_BV):
        return ((logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B1).exp_()
    below_BV = _below_largest(logits_BV)
    below_BV /= temperature_B1.numpy()
    return torch.from_numpy(np.exp(below_BV, out=below_BV))


def block_sums(weights_BV: Tensor, width: int) -> Tensor:
    """Sums of blocks of so many tokens, the last one maybe shorter ``[B, N]``; each row's by themselves."""
    whole = weights_BV.shape[-1] // width * width
    blocks_BNW, rest_BR = (
        weights_BV[:, :whole].view(len(weights_BV), whole // width, width),
        weights_BV[:, whole:],
    )
    parts = (blocks_BNW, rest_BR[:, None]) if rest_BR.shape[-1] else (blocks_BNW,)
    sums = [torch.from_numpy(part.numpy().sum(-1)) if _on_cpu(part) else part.sum(-1) for part in parts]
    return torch.cat(sums, dim=-1)


def log_chances(logits_BV: Tensor) -> Tensor:
    """Log-probabilities of all tokens ``[B, V]``."""
    if not _on_cpu(logits_BV):
        return torch.log_softmax(logits_BV, dim=-1)
    below_BV = _below_largest(logits_BV)
    below_BV -= np.log(np.exp(below_BV).sum(-1, keepdims=True))
    return torch.from_numpy(below_BV)


def _below_largest(logits_BV: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    logits = logits_BV.numpy()
    below: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = logits - logits.max(-1, keepdims=True)
    return below


def _on_cpu(part: Tensor) -> bool:
    return part.device.type == "cpu"
