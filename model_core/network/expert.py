# SPDX-License-Identifier: Apache-2.0
"""One owner's expert as modules: a feed-forward network, a router row and perhaps a domain gate per layer.

The names of its ``state_dict`` are the tensor names of ``expert.safetensors``. Its networks are of one kind
(``model_core.packing.forms``). It keeps nothing of the base it was trained beside, except its sizes: the
public network that some kinds lean on is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_core.network.ffn import DenseWeights, RowFunction, SwiGLU
from model_core.network.kinds import make_ffn
from model_core.network.mixture import LayerExperts
from model_core.network.router import RouterRows, fold_gate
from model_core.packing.forms import ExpertKind, FfnForm


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
        form: of this expert's network.
        gated: whether the expert has domain gates.
    """

    def __init__(self, d_model: int, form: FfnForm, *, gated: bool) -> None:
        super().__init__()
        self.ffn = make_ffn(form, d_model)
        self.router = RouterRow(d_model, biased=True)
        self.gate = DomainGate(d_model) if gated else None

    def row_function(self, public_ffn: SwiGLU) -> RowFunction:
        """The expert's network as a function ``[R, D] -> [R, D]`` whose rows stand alone.

        Args:
            public_ffn: the public network of the same layer; neither changed nor copied.
        """
        return self.ffn.beside(public_ffn)

    def dense_ffn(self, public_ffn: SwiGLU) -> DenseWeights:
        """The plain SwiGLU that computes the same: ``(gate_FD, up_FD, down_DF)``.

        Low-rank and int8 networks are widened into new tensors of the public network's dtype; the others
        may share memory with the expert.

        Args:
            public_ffn: the public network of the same layer.
        """
        return self.ffn.dense(public_ffn)


class Expert(nn.Module):
    """An expert over all layers.

    Args:
        n_layers: layers of the base.
        d_model: width of the base's residual stream.
        d_ffn: inner width of the expert's networks.
        gated: whether it has domain gates.
        kind: of its networks.
        rank: of the factors, for ``low_rank``.
        pieces: how many, for ``split``.

    Raises:
        ValueError: a rank or a number of pieces that the kind or the sizes do not allow.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        d_model: int,
        d_ffn: int,
        gated: bool = False,
        kind: ExpertKind = "full",
        rank: int | None = None,
        pieces: int | None = None,
    ) -> None:
        super().__init__()
        self.form = FfnForm(kind=kind, d_ffn=d_ffn, rank=rank, pieces=pieces)
        if problem := self.form.problem(d_model):
            raise ValueError(problem)
        self.layers = nn.ModuleList(ExpertLayer(d_model, self.form, gated=gated) for _ in range(n_layers))

    @classmethod
    def of_form(cls, form: FfnForm, *, n_layers: int, d_model: int, gated: bool = False) -> Expert:
        """An expert whose networks are of a form; arguments as for the class."""
        return cls(
            n_layers=n_layers,
            d_model=d_model,
            d_ffn=form.d_ffn,
            gated=gated,
            kind=form.kind,
            rank=form.rank,
            pieces=form.pieces,
        )

    @property
    def kind(self) -> ExpertKind:
        """The kind of its networks."""
        return self.form.kind

    @property
    def gated(self) -> bool:
        """Whether it has domain gates."""
        return self.layer(0).gate is not None

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors: what it costs in a file and in memory."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def dtype(self) -> torch.dtype | None:
        """Dtype of its networks' weights; None for integers, which fit a base of any dtype."""
        weights = (tensor for tensor in self.layer(0).ffn.parameters())
        return next((tensor.dtype for tensor in weights), None)

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


def layer_experts(public_row_D: Tensor, public_ffn: SwiGLU, others: Sequence[ExpertLayer]) -> LayerExperts:
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
        ffns=(public_ffn, *(part.row_function(public_ffn) for part in others)),
        gated=any(part.gate is not None for part in others),
    )
