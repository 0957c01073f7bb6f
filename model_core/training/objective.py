# SPDX-License-Identifier: Apache-2.0
"""What is minimised: next-token cross-entropy with z-losses, for a dense base or for an expert beside it.

Each objective is one module whose ``forward`` returns the loss, so that accelerate can wrap it whole. Only
parameters that require gradients are trained; the rest gets neither gradient buffers nor optimizer state. The
logits of a whole pass are never held (``fused.loss``).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.training.fused.loss import linear_cross_entropy
from model_core.training.fused.pair import FusedPair, supported
from model_core.training.modules import head_of, hidden_of


class Objective(nn.Module):
    """A loss over token rows with named trainable parameters."""

    logit_z_loss: float

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that this run changes, in a fixed order."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def use_modules(self) -> None:
        """From now on calls every network as a module, as wrappers that shard parameters need it."""

    def token_loss(self, logits_BSV: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats a token, and the weighted z-loss of the vocabulary logits."""
        logits_BSV = logits_BSV.float()
        normaliser_BS = logits_BSV.logsumexp(-1)
        picked_BS = logits_BSV.gather(-1, targets_BS.unsqueeze(-1)).squeeze(-1)
        return (normaliser_BS - picked_BS).mean(), self.logit_z_loss * normaliser_BS.square().mean()

    def head_loss(self, hidden_BSD: Tensor, head_VD: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The same sum and cross-entropy (detached) from hidden states, in blocks of rows."""
        return linear_cross_entropy(
            hidden_BSD.flatten(0, 1), head_VD, targets_BS.flatten(), z_weight=self.logit_z_loss
        )


class DenseObjective(Objective):
    """Trains every parameter of a base but the public router rows, which stay 0 (the rows' origin).

    Args:
        decoder: the model.
        logit_z_loss: weight of the squared log-sum-exp.
        recompute: whether a layer's activations are made again in backward instead of kept.
    """

    def __init__(self, decoder: Decoder, *, logit_z_loss: float, recompute: bool = False) -> None:
        super().__init__()
        self.decoder = decoder.train().requires_grad_(True)
        for index in range(decoder.shape.n_layers):
            decoder.layer(index).router.requires_grad_(False)
        self.logit_z_loss = logit_z_loss
        self.recompute = recompute

    def forward(self, ids_BS: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain cross-entropy in it (detached), nats a token."""
        hidden_BSD, _ = hidden_of(self.decoder, (), ids_BS, recompute=self.recompute)
        return self.head_loss(hidden_BSD, head_of(self.decoder), targets_BS)


class PairObjective(Objective):
    """Trains one expert beside the frozen public one: k = 2, both always on (FlexOlmo section 3.3.1).

    Args:
        decoder: the base; none of its parameters is trained.
        expert: the owner's expert; its networks and router rows are trained, its gates are not.
        logit_z_loss: weight of the squared log-sum-exp of vocabulary logits.
        router_z_loss: weight of the squared log-sum-exp of router logits, averaged over layers.
        recompute: whether a layer's activations are made again in backward instead of kept.
    """

    def __init__(
        self,
        decoder: Decoder,
        expert: Expert,
        *,
        logit_z_loss: float,
        router_z_loss: float,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.decoder = decoder.requires_grad_(False)
        self.expert = expert.requires_grad_(True)
        for index in range(decoder.shape.n_layers):
            gate = expert.layer(index).gate
            if gate is not None:
                gate.requires_grad_(False)
        self.logit_z_loss = logit_z_loss
        self.router_z_loss = router_z_loss
        self.recompute = recompute
        self.fused = FusedPair(decoder, expert, recompute=recompute) if supported(decoder) else None

    def use_modules(self) -> None:
        """Leaves the kernels that read weights outside of their modules."""
        self.fused = None

    def forward(self, ids_BS: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain cross-entropy in it (detached), nats a token."""
        if self.fused is not None:
            hidden_BSD, square = self.fused.hidden(ids_BS)
            head_VD = self.fused.head()
        else:
            hidden_BSD, square = hidden_of(self.decoder, (self.expert,), ids_BS, recompute=self.recompute)
            head_VD = head_of(self.decoder)
        loss, plain = self.head_loss(hidden_BSD, head_VD, targets_BS)
        return loss + self.router_z_loss * square, plain
