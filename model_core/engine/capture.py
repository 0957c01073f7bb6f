# SPDX-License-Identifier: Apache-2.0
"""Steps that are recorded once and repeated without Python: CUDA graphs where there are any.

What is captured reads and writes fixed memory; whoever repeats it has filled that memory before. This module
does not know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

# Computes from fixed memory into tensors.
Compute = Callable[[], tuple[Tensor, ...]]


class Capturer(Protocol):
    """Turns a computation into one that can be repeated."""

    def capture(self, compute: Compute) -> Compute:
        """Runs a computation and returns what repeats it.

        Whatever ``compute`` asks Python for is asked once. What the repetition returns stands in the same
        memory every time, so it has to be read before the next one.

        Raises:
            RuntimeError: it cannot be captured here.
        """
        ...


class CudaGraphs:
    """Captures CUDA graphs, which share one pool of memory.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Compute) -> Compute:
        """See ``Capturer.capture``; computes twice beforehand, so that libraries have set themselves up."""
        current = torch.cuda.current_stream(self._device)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):
                compute()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = compute()

        def repeat() -> tuple[Tensor, ...]:
            graph.replay()
            return results

        return repeat
