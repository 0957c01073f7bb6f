# SPDX-License-Identifier: Apache-2.0
"""One owner's expert as modules: a feed-forward network, a router row and perhaps a domain gate per layer.

The names of its ``state_dict`` are the tensor names of ``expert.safetensors``. It knows nothing of the base
it was trained beside, except its sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_core.network.ffn import SwiGLU
from model_core.network.mixture import LayerExperts
from model_core.network.router import RouterRows, fold_gate


class RouterRow(nn.Module):
    """An expert's router row of one layer, fp32 whatever the expert's dtype.

    Args:
        d_model: width of the residual stream.
        biased: whether a fixed bias stands beside it (experts: yes; the public expert: no).
    """

    bias: Tensor | None

    def __init__(self, d_model: int, *, biased: bool) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(d_model))
        # A buffer: while an owner trains on its own text alone, a learned bias only drifts up to 0.
        self.register_buffer("bias", torch.zeros(()) if biased else None)


class DomainGate(nn.Module):
    """A logistic gate on the prefix mean of the residual; adds its log-sigmoid to the expert's logit.

    Args:
        d_model: width of the residual stream.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_model))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(d_model))


class ExpertLayer(nn.Module):
    """What an expert brings to one layer.

    Args:
        d_model: width of the residual stream (D).
        d_ffn: inner width of this expert's network; may differ from the public one's.
        gated: whether the expert has domain gates.
    """

    def __init__(self, d_model: int, d_ffn: int, *, gated: bool) -> None:
        super().__init__()
        self.ffn = SwiGLU(d_model, d_ffn)
        self.router = RouterRow(d_model, biased=True)
        self.gate = DomainGate(d_model) if gated else None


class Expert(nn.Module):
    """An expert over all layers.

    Args:
        n_layers: layers of the base.
        d_model: width of the base's residual stream.
        d_ffn: inner width of the expert's networks.
        gated: whether it has domain gates.
    """

    def __init__(self, *, n_layers: int, d_model: int, d_ffn: int, gated: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ExpertLayer(d_model, d_ffn, gated=gated) for _ in range(n_layers))

    def layer(self, index: int) -> ExpertLayer:
        """The part that belongs to one layer."""
        part = self.layers[index]
        assert isinstance(part, ExpertLayer)  # noqa: S101  (a ModuleList forgets its members' type)
        return part

    def add_gates(self) -> None:
        """Gives every layer a fresh gate (weight 0, bias 0) of the router row's width."""
        for index in range(len(self.layers)):
            part = self.layer(index)
            part.gate = DomainGate(part.router.row.shape[0]).to(part.router.row.device)


def layer_experts(public_row_D: Tensor, public_ffn: nn.Module, others: Sequence[ExpertLayer]) -> LayerExperts:
    """Puts the public expert and others side by side for one layer.

    Gradients flow through the stacked rows to the experts' own. The order given is the canonical one.

    Args:
        public_row_D: router row of the public expert.
        public_ffn: its network.
        others: the other experts' parts of the same layer.
    """
    device = public_row_D.device
    zero = torch.zeros((), device=device)
    closed_row = torch.zeros_like(public_row_D, dtype=torch.float64)
    always_open = torch.full((), float("inf"), dtype=torch.float64, device=device)
    rows, biases, gate_rows, gate_biases = [public_row_D.float()], [zero], [closed_row], [always_open]
    for part in others:
        rows.append(part.router.row.float())
        bias = part.router.bias
        biases.append(zero if bias is None else bias.float().clamp(max=0.0))
        gate = part.gate
        folded = (closed_row, always_open)
        if gate is not None:
            folded = fold_gate(gate.weight, gate.bias, gate.mean, gate.scale)
        gate_rows.append(folded[0])
        gate_biases.append(folded[1])
    return LayerExperts(
        rows=RouterRows(
            rows_ED=torch.stack(rows),
            biases_E=torch.stack(biases),
            gate_rows_ED=torch.stack(gate_rows),
            gate_biases_E=torch.stack(gate_biases),
        ),
        ffns=(public_ffn, *(part.ffn for part in others)),
        gated=any(part.gate is not None for part in others),
    )
