# SPDX-License-Identifier: Apache-2.0
"""Gates of a trained expert can be made anew, are as strong as asked, and compose as a joint fit would."""

from __future__ import annotations

import copy

import torch
from training_builders import same_tensors, texts, tiny_decoder, tiny_recipe, tiny_tokenizer

from model_core.network.decoder import upcycle
from model_core.network.expert import Expert
from model_core.network.router import log_shares
from model_core.training.calibration import PUBLIC_SHARE_LIMIT, calibrate
from model_core.training.expert import train_expert
from model_core.training.finishing import gate_expert, public_halves
from model_core.training.gates import _logistic, fit_gates, token_rows

_RECIPE = tiny_recipe(steps=10)
_TOKENIZER = tiny_tokenizer()
_PUBLIC = texts("public", 20, seed=9)
_OWN = texts("own", 40)


def _biases(expert: Expert) -> torch.Tensor:
    return torch.stack([expert.layer(index).router.get_buffer("bias") for index in range(len(expert.layers))])


def test_gating_a_plain_expert_later_gives_the_same_bytes() -> None:
    """Trained without gates and gated afterwards, or in one go: the same tensors. Twice is once."""
    decoder = tiny_decoder()
    whole = train_expert(decoder, _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1).expert
    plain_recipe = _RECIPE.model_copy(update={"gated": False})
    plain = train_expert(decoder, _TOKENIZER, _OWN, _PUBLIC, plain_recipe, seed=1)
    assert whole is not None
    assert plain.expert is not None
    assert plain.gates == ()
    assert plain.calibration is None
    later = copy.deepcopy(plain.expert)
    for _ in range(2):
        gate_expert(decoder, _TOKENIZER, later, _OWN, _PUBLIC, _RECIPE)
        assert same_tensors(later, whole)


def test_strength_multiplies_the_fitted_logit() -> None:
    """Weights and bias are those of the fit times the strength; what the fit stands on is the same."""
    decoder = tiny_decoder()
    own = token_rows(_OWN[:10], _TOKENIZER, max_tokens=64)
    public = token_rows(_PUBLIC[:10], _TOKENIZER, max_tokens=64)
    fitted, strong = upcycle(decoder), upcycle(decoder)
    fit_gates(decoder, fitted, own, public)
    fit_gates(decoder, strong, own, public, strength=2.0)
    for index in range(decoder.shape.n_layers):
        weak_gate, strong_gate = fitted.layer(index).gate, strong.layer(index).gate
        assert weak_gate is not None
        assert strong_gate is not None
        assert torch.allclose(strong_gate.weight, 2 * weak_gate.weight)
        assert torch.allclose(strong_gate.bias, 2 * weak_gate.bias)
        assert torch.equal(strong_gate.mean, weak_gate.mean)


def test_without_slack_gates_stay_where_public_text_lets_them() -> None:
    """No slack and no bound on public text: no shift; slack alone sets every bias, and no gate moves."""
    decoder = tiny_decoder()
    loose = {"public_tolerance": 1.0, "own_slack": 0.0}
    shifted = {"public_tolerance": 1.0, "own_slack": 1.0}
    expert, lowered = upcycle(decoder), upcycle(decoder)
    _, still = gate_expert(decoder, _TOKENIZER, expert, _OWN, _PUBLIC, _RECIPE.model_copy(update=loose))
    _, moved = gate_expert(decoder, _TOKENIZER, lowered, _OWN, _PUBLIC, _RECIPE.model_copy(update=shifted))
    assert still.gate_shift == 0.0
    assert still.own_loss == 0.0
    assert moved.gate_shift < 0
    assert torch.equal(_biases(expert), torch.zeros(decoder.shape.n_layers))
    assert torch.equal(_biases(lowered), torch.full((decoder.shape.n_layers,), moved.gate_shift))


def test_an_expert_as_good_as_the_base_still_leaves_it_most_public_text() -> None:
    """A copy of the public expert harms no text; its bias is lowered until it takes at most the limit."""
    decoder = tiny_decoder()
    shares = {}
    for limit in (1.0, PUBLIC_SHARE_LIMIT):
        expert = upcycle(decoder)
        expert.add_gates()
        for index in range(decoder.shape.n_layers):
            gate = expert.layer(index).gate
            assert gate is not None
            with torch.no_grad():
                gate.bias.fill_(3.0)
        arguments = (decoder, expert, _PUBLIC, _OWN[:4], _TOKENIZER)
        report = calibrate(*arguments, tolerance=1.0, own_slack=0.0, share_limit=limit)
        assert report.held
        shares[limit] = (report.public_share, report.gate_shift)
    assert shares[1.0][0] > PUBLIC_SHARE_LIMIT >= shares[PUBLIC_SHARE_LIMIT][0]
    assert shares[1.0][1] == 0.0 > shares[PUBLIC_SHARE_LIMIT][1]


def test_gates_fitted_alone_share_as_a_joint_fit_would() -> None:
    """Three Gaussian domains and a public one: lone fits share nearly as Bayes does, sigmoids do not."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(4, 5, generator=generator).double()

    def draw(domain: int, count: int) -> torch.Tensor:
        return centres[domain] + torch.randn(count, 5, generator=generator).double()

    public = draw(0, 4000)
    gates = [_logistic(draw(domain, 4000), public, ridge=1e-6)[0] for domain in (1, 2, 3)]
    x_ND = torch.cat([draw(domain, 300) for domain in range(4)])
    evidence = [((x_ND - gate.mean_D) / gate.scale_D) @ gate.weight_D + gate.bias for gate in gates]
    open_ = torch.full((len(x_ND),), torch.inf).double()
    density = -(x_ND[:, None] - centres).square().sum(-1) / 2
    posterior = density.softmax(-1)[:, 1:]

    def miss(found: torch.Tensor) -> float:
        return float((found - posterior).abs().mean())

    assert miss(log_shares(torch.stack([open_, *evidence], dim=1)).exp()[:, 1:]) < 0.03
    assert miss(torch.stack(evidence, dim=1).sigmoid()) > 0.15


def test_the_longest_row_that_fits_the_base_is_read() -> None:
    """A recipe may ask for more tokens than the base has positions."""
    decoder = tiny_decoder()
    recipe = _RECIPE.model_copy(update={"fit_tokens": 4 * decoder.shape.max_positions})
    long = [type(document)(id=document.id, text=10 * document.text) for document in _OWN]
    gate_expert(decoder, _TOKENIZER, upcycle(decoder), long, _PUBLIC, recipe)
    assert public_halves(_PUBLIC)[0]
