# SPDX-License-Identifier: Apache-2.0
"""Adds up what the ranks computed, in an order that never changes.

Every rank gets every rank's part and adds them itself, in rank order and fp32. A reduction would move half as
many bytes between two ranks, but adds in an order of its own choosing, which depends on sizes and, with
several, on timing; so the bits of a row would depend on its neighbours. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Takes flat bytes, gives those of all ranks in rank order.
Gather = Callable[[Tensor], list[Tensor]]


class Exchange:
    """Sums over ranks.

    Args:
        gather: brings what all ranks hold to all of them.
    """

    def __init__(self, gather: Gather) -> None:
        self._gather = gather

    def sum(self, partial: Tensor) -> Tensor:
        """The sum of the ranks' tensors in the dtype of ``partial``, equal on every rank in every bit."""
        parts = self._gather(partial.contiguous().view(-1).view(torch.uint8))
        first, *others = (part.view(partial.dtype).view(partial.shape).float() for part in parts)
        total = first
        for other in others:
            total = total + other
        return total.to(partial.dtype)


def join_ranks(store: Path, *, rank: int, n_ranks: int, device: torch.device, patience_s: float) -> Exchange:
    """Connects a rank with the others of its machine: gloo over loopback for CPUs, NCCL for CUDA.

    Args:
        store: a file through which they find each other, in a folder of this user alone.
        rank: number of this one.
        n_ranks: how many there are.
        device: where this rank's tensors are.
        patience_s: how long to wait for the others, here and in every exchange.
    """
    c10d: Any = dist  # its stubs know neither stores nor choices
    meeting, patience = c10d.FileStore(str(store), n_ranks), timedelta(seconds=patience_s)
    if device.type == "cuda":
        choices = c10d.ProcessGroupNCCL.Options()
        choices._timeout = patience
        group = c10d.ProcessGroupNCCL(meeting, rank, n_ranks, choices)
    else:
        choices = c10d.ProcessGroupGloo._Options()
        choices._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
        choices._timeout = patience
        group = c10d.ProcessGroupGloo(meeting, rank, n_ranks, choices)

    def gather(mine: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(mine) for _ in range(n_ranks)]
        group.allgather([parts], [mine]).wait()
        return parts

    return Exchange(gather)
