# SPDX-License-Identifier: Apache-2.0
"""What is minimised: next-token cross-entropy with z-losses, for a dense base or for an expert beside it.

Each objective is one module whose ``forward`` returns the loss, so that accelerate can wrap it whole. Only
parameters that require gradients are trained; the rest gets neither gradient buffers nor optimizer state.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import Routing


class Objective(nn.Module):
    """A loss over token rows with named trainable parameters."""

    logit_z_loss: float

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that this run changes, in a fixed order."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def token_loss(self, logits_BSV: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats a token, and the weighted z-loss of the vocabulary logits."""
        logits_BSV = logits_BSV.float()
        normaliser_BS = logits_BSV.logsumexp(-1)
        picked_BS = logits_BSV.gather(-1, targets_BS.unsqueeze(-1)).squeeze(-1)
        return (normaliser_BS - picked_BS).mean(), self.logit_z_loss * normaliser_BS.square().mean()


class DenseObjective(Objective):
    """Trains every parameter of a base but the public router rows, which stay 0 (the rows' origin).

    Args:
        decoder: the model.
        logit_z_loss: weight of the squared log-sum-exp.
    """

    def __init__(self, decoder: Decoder, *, logit_z_loss: float) -> None:
        super().__init__()
        self.decoder = decoder.train().requires_grad_(True)
        for index in range(decoder.shape.n_layers):
            decoder.layer(index).router.requires_grad_(False)
        self.logit_z_loss = logit_z_loss

    def forward(self, ids_BS: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain cross-entropy in it (detached), nats a token."""
        loss, z_loss = self.token_loss(self.decoder(ids_BS), targets_BS)
        return loss + z_loss, loss.detach()


class PairObjective(Objective):
    """Trains one expert beside the frozen public one: k = 2, both always on (FlexOlmo section 3.3.1).

    Args:
        decoder: the base; none of its parameters is trained.
        expert: the owner's expert; its networks and router rows are trained, its gates are not.
        logit_z_loss: weight of the squared log-sum-exp of vocabulary logits.
        router_z_loss: weight of the squared log-sum-exp of router logits, averaged over layers.
    """

    def __init__(
        self, decoder: Decoder, expert: Expert, *, logit_z_loss: float, router_z_loss: float
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

    def forward(self, ids_BS: Tensor, targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain cross-entropy in it (detached), nats a token."""
        squares: list[Tensor] = []

        def watch(_layer: int, _h_BSD: Tensor, routing: Routing | None) -> None:
            if routing is not None:
                squares.append(routing.logits[0].logsumexp(-1).square().mean())

        logits_BSV = self.decoder(ids_BS, (self.expert,), top_k=2, observe=watch)
        loss, z_loss = self.token_loss(logits_BSV, targets_BS)
        return loss + z_loss + self.router_z_loss * torch.stack(squares).mean(), loss.detach()
