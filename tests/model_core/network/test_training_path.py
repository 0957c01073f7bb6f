# SPDX-License-Identifier: Apache-2.0
"""The path that training takes: dense for k = n = 2, gradients only where they are required."""

from __future__ import annotations

import pytest
import torch
from tensor_builders import prompt, random_decoder, random_expert, tiny_shape

from model_core.network.decoder import upcycle
from model_core.network.mixture import Routing


def test_gradients_reach_the_experts_networks_and_rows_alone() -> None:
    """Nothing is stored for the frozen base, and every layer of the expert learns."""
    decoder = random_decoder(tiny_shape(), 1).requires_grad_(False)
    expert = random_expert(decoder, 1, gated=True)
    decoder(torch.tensor([prompt(1, 12)]), [expert], top_k=2).square().mean().backward()
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in expert.parameters())


def test_gradients_equal_those_of_the_written_formula() -> None:
    """p0 * public(h) + p1 * own(h) with softmax over two logits, checked by finite differences."""
    decoder = random_decoder(tiny_shape(n_layers=1), 2).requires_grad_(False)
    expert = random_expert(decoder, 2, gated=False)
    ids = torch.tensor([prompt(2, 6)])
    decoder(ids, [expert], top_k=2).square().sum().backward()
    row = expert.layer(0).router.row
    assert row.grad is not None
    direction = row.grad / row.grad.norm()
    slopes = []
    for sign in (1, -1):
        with torch.no_grad():
            row += sign * 1e-2 * direction
            slopes.append(float(decoder(ids, [expert], top_k=2).double().square().sum()))
            row -= sign * 1e-2 * direction
    assert (slopes[0] - slopes[1]) / 2e-2 == pytest.approx(float(row.grad.norm()), rel=2e-2)


def test_observers_see_residuals_and_logits_of_every_layer() -> None:
    """The hook that gates, z-losses and studies are built on."""
    decoder = random_decoder(tiny_shape(), 3)
    expert = upcycle(decoder)
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def watch(layer: int, h_BSD: torch.Tensor, routing: Routing | None) -> None:
        assert routing is not None
        seen.append((layer, tuple(h_BSD.shape), tuple(routing.logits[0].shape)))
        assert torch.allclose(routing.weights_TE, torch.full((10, 2), 0.5))

    decoder(torch.tensor([prompt(3, 5), prompt(4, 5)]), [expert], observe=watch)
    assert seen == [(0, (2, 5, 24), (10, 2)), (1, (2, 5, 24), (10, 2))]
