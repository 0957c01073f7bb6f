# SPDX-License-Identifier: Apache-2.0
"""Adds up what the ranks computed, in an order that never changes.

Every rank gets every rank's part and adds them itself, in rank order and fp32. A reduction would move half as
many bytes between two ranks, but adds in an order of its own choosing, which depends on sizes and, with
several, on timing; so the bits of a row would depend on its neighbours. Knows no weights.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model_core.engine.sharded.wire import fill

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


def over_lines(rank: int, lines: Mapping[int, socket.socket]) -> Gather:
    """Gathers over socket pairs between the processes of one machine: nothing listens, nobody else can join.

    Every two ranks have a line. All take their lines in the order of the other's number, and of each two the
    lower one speaks first, so no circle of ranks ever waits for itself, however long the messages are.

    Args:
        rank: number of this one.
        lines: to each of the others, by their numbers.
    """

    def gather(mine: Tensor) -> list[Tensor]:
        parts = {rank: mine}
        said = mine.cpu().numpy().data
        for other in sorted(lines):
            heard = torch.empty(mine.shape, dtype=torch.uint8)
            if rank < other:
                lines[other].sendall(said)
            fill(lines[other], heard.numpy().data)
            if rank > other:
                lines[other].sendall(said)
            parts[other] = heard.to(mine.device)
        return [parts[number] for number in sorted(parts)]

    return gather


def over_nccl(store: Path, *, rank: int, n_ranks: int, patience_s: float) -> Gather:
    """Gathers between the GPUs of one machine.

    Args:
        store: a file through which the ranks find each other, in a folder of this user alone.
        rank: number of this one, and of its GPU.
        n_ranks: how many there are.
        patience_s: how long to wait for the others.
    """
    c10d: Any = dist  # its stubs know neither stores nor choices
    choices = c10d.ProcessGroupNCCL.Options()
    choices._timeout = timedelta(seconds=patience_s)
    group = c10d.ProcessGroupNCCL(c10d.FileStore(str(store), n_ranks), rank, n_ranks, choices)

    def gather(mine: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(mine) for _ in range(n_ranks)]
        group.allgather([parts], [mine]).wait()
        return parts

    return gather
