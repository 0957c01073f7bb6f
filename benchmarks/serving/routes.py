# SPDX-License-Identifier: Apache-2.0
"""Which experts each position takes, found by running whole sequences once more, apart from the engine.

The figures that follow from it: how many experts a step touches in each layer, and how many rows each expert
has in a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.network.bank import ExpertBank
from model_core.network.mixture import Routing, plan_uniform


@dataclass(frozen=True, kw_only=True, slots=True)
class Routes:
    """One sequence's way.

    Attributes:
        chosen_SLE: whether a position takes an expert in a layer; columns are the bank's.
    """

    chosen_SLE: Tensor

    def rows_of(self, begin: int, end: int) -> Tensor:
        """How many of some positions each expert of each layer computes."""
        return self.chosen_SLE[begin:end].sum(0)


@torch.inference_mode()
def routes_of(bank: ExpertBank, ids: Sequence[int], experts: Sequence[str], top_k: int) -> Routes:
    """Runs a sequence whole and notes what its routers choose.

    Args:
        bank: weights.
        ids: token ids.
        experts: digests that may compute it.
        top_k: experts per token.
    """
    ids_1S = torch.tensor([list(ids)])
    n_columns = len(bank.names())
    found: list[Tensor] = []

    def observe(_layer: int, _inner: Tensor, routing: Routing | None) -> None:
        if routing is None:
            chosen_SE = torch.zeros(len(ids), n_columns, dtype=torch.bool)
            chosen_SE[:, 0] = True
        else:
            chosen_SE = routing.weights_TE > 0
        found.append(chosen_SE)

    plan = plan_uniform(bank.columns(experts), top_k, ids_1S.device, renormalise=bank.shape.renormalise)
    bank.decoder.run(ids_1S, bank.panels(), plan, observe=observe)
    return Routes(chosen_SLE=torch.stack(found, dim=1))


def mean_touched(routes: Sequence[Routes], *, begin: int, end: int) -> Tensor:
    """How often a decode step touches each expert of each layer, on average over steps.

    Args:
        routes: of the sequences of a batch, which stand at the same position in every step.
        begin: position computed by the first step.
        end: behind that of the last.

    Returns:
        Shares between 0 and 1, fp64 ``[L, E]``.
    """
    any_SLE = torch.stack([route.chosen_SLE[begin:end] for route in routes]).any(0)
    return any_SLE.double().mean(0)
