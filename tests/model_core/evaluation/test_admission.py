# SPDX-License-Identifier: Apache-2.0
"""Admission: what a forward pass shows of a stranger's expert, and what is not let in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_builders import prompt, random_decoder, random_expert, tiny_shape
from training_builders import texts, tiny_decoder, tiny_recipe, tiny_tokenizer

from model_core.errors import (
    AdmissionRefused,
    ExpertOverflows,
    ExpertTooLoud,
    PublicTextWorse,
    ReportInvalid,
    RouterRowTooLong,
    ShareAboveCalibration,
)
from model_core.evaluation.admission import largest_inputs, weigh_expert
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.packing.admission import (
    MAX_REPORT_BYTES,
    AdmissionReport,
    LayerReading,
    check_admission,
    parse_report,
)
from model_core.packing.forms import ExpertKind
from model_core.training.calibration import bound_router_rows, calibrate, residual_norms
from model_core.training.expert import train_expert
from model_core.training.finishing import public_halves
from model_core.training.gates import token_rows

_RECIPE = tiny_recipe(public_tolerance=0.0015, own_slack=0.015, gate_strength=1.0)
_TOKENIZER = tiny_tokenizer()
_PUBLIC = texts("public", 20, seed=9)
_OWN = texts("own", 40)
_UNSEEN = public_halves(_PUBLIC)[1]


@cache
def _honest() -> tuple[Decoder, Expert, dict[str, float]]:
    """A base, an expert that was trained by the recipe, and what its manifest declares."""
    decoder = tiny_decoder()
    result = train_expert(decoder, _TOKENIZER, _OWN, _PUBLIC, _RECIPE, seed=1)
    assert result.expert is not None
    assert result.calibration is not None
    return decoder, result.expert, {name: float(value) for name, value in asdict(result.calibration).items()}


def _changed(change: Callable[[Expert], None]) -> AdmissionReport:
    """The report of the honest expert after somebody has changed it."""
    decoder, expert, _ = _honest()
    twin = copy.deepcopy(expert)
    with torch.no_grad():
        change(twin)
    return weigh_expert(decoder, twin, _UNSEEN, _TOKENIZER)


def _each_layer(change: Callable[[torch.nn.Module], None]) -> Callable[[Expert], None]:
    return lambda expert: [change(layer) for layer in expert.layers] and None


def _inflate_rows(layer: torch.nn.Module) -> None:
    layer.router.row.mul_(10)


def _inflate_network(layer: torch.nn.Module) -> None:
    layer.ffn.down.weight.mul_(100)


def _open_gates(layer: torch.nn.Module) -> None:
    layer.gate.bias.add_(50)


def _lose_gates(layer: torch.nn.Module) -> None:
    layer.gate = None
    layer.router.bias.zero_()


def test_an_honest_expert_is_admitted() -> None:
    """What the recipe makes passes every limit, and its measured share is the one that it declares."""
    decoder, expert, declared = _honest()
    report = weigh_expert(decoder, expert, _UNSEEN, _TOKENIZER)
    check_admission(report, declared)
    assert report.weighed
    assert report.mean_share == pytest.approx(declared["public_share"], rel=1e-4)
    assert report.public_excess == pytest.approx(declared["public_excess"], abs=1e-6)
    assert weigh_expert(decoder, expert, _UNSEEN, _TOKENIZER) == report


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        (_inflate_rows, RouterRowTooLong, "logit of"),
        (_inflate_network, ExpertTooLoud, "puts out"),
        (_open_gates, ShareAboveCalibration, "declares"),
        (_lose_gates, ShareAboveCalibration, "declares"),
    ],
)
def test_a_changed_expert_is_refused_with_the_reason(
    change: Callable[[torch.nn.Module], None], error: type[AdmissionRefused], word: str
) -> None:
    """Rows x10, a network x100 and gates that were opened or left out after calibration are refused."""
    with pytest.raises(error, match=word):
        check_admission(_changed(_each_layer(change)), _honest()[2])


def test_one_loud_layer_is_named() -> None:
    """One layer is enough to be refused, and the refusal says which and by how much."""
    with pytest.raises(ExpertTooLoud, match="layer 1") as caught:
        check_admission(_changed(lambda expert: _inflate_network(expert.layer(1))), _honest()[2])
    assert caught.value.facts["layer"] == 1
    assert caught.value.facts["gain"] > 50


def test_a_loud_network_behind_a_small_weight_is_seen() -> None:
    """A share of routing says nothing about a share of output: the output's own share gives it away."""
    quiet = weigh_expert(_honest()[0], _honest()[1], _UNSEEN, _TOKENIZER)
    loud = _changed(_each_layer(_inflate_network))
    assert loud.mean_share < 1.5 * quiet.mean_share
    assert loud.mean_output_share > 4 * quiet.mean_output_share


def test_rows_times_ten_take_their_calibrated_share_once_bounded() -> None:
    """Inflated rows that are bounded and calibrated again take no more of public text than is declared."""
    decoder, expert, _ = _honest()
    inflated = copy.deepcopy(expert)
    with torch.no_grad():
        _each_layer(_inflate_rows)(inflated)
    norms = residual_norms(decoder, token_rows(_PUBLIC, _TOKENIZER, max_tokens=64))
    assert bound_router_rows(inflated, norms, logit_bound=_RECIPE.row_logit_bound) > 0
    declared = calibrate(decoder, inflated, _UNSEEN, _OWN[:8], _TOKENIZER, tolerance=0.0015, own_slack=0.015)
    report = weigh_expert(decoder, inflated, _UNSEEN, _TOKENIZER)
    check_admission(report, {"public_share": declared.public_share})
    assert max(layer.row_logit for layer in report.layers) < 22


def test_numbers_that_overflow_are_refused() -> None:
    """Finite weights whose products are not finite never reach a report."""

    def explode(expert: Expert) -> None:
        expert.layer(0).ffn.gate.weight.fill_(3e38)

    with pytest.raises(ExpertOverflows, match="layer 0"):
        _changed(explode)

    def rot(expert: Expert) -> None:
        gate = expert.layer(1).gate
        assert gate is not None
        gate.weight.fill_(3e38)
        gate.scale.fill_(1e-45)
        gate.mean.fill_(3e38)

    report = _changed(rot)  # fp64 still holds these: the gate is then open or shut, and is judged as such
    assert all(math.isfinite(layer.share) for layer in report.layers)


def test_public_text_that_suffers_is_refused() -> None:
    """An expert within its declared share that undoes what the base knows is refused by the bits it costs."""
    decoder = tiny_decoder().requires_grad_(True)
    rows = torch.stack(token_rows(public_halves(_PUBLIC)[0][:8], _TOKENIZER, max_tokens=64))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            decoder(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
        ).backward()
        optimizer.step()
    decoder.requires_grad_(False)
    expert = upcycle(decoder)
    with torch.no_grad():
        for index in range(len(expert.layers)):
            expert.layer(index).ffn.down.weight.mul_(-1.5)
    report = weigh_expert(decoder, expert, _UNSEEN, _TOKENIZER)
    with pytest.raises(PublicTextWorse, match="more bits"):
        check_admission(report, {"public_share": report.mean_share})


def test_without_public_text_only_rows_and_gains_are_judged() -> None:
    """A base without text weighs on random tokens: shares are not judged, rows and gains still are."""
    decoder, expert, _ = _honest()
    report = weigh_expert(decoder, expert, (), None, seed=7)
    assert (report.weighed, report.probe, report.public_excess) == (False, "random tokens", 0.0)
    assert report == weigh_expert(decoder, expert, (), None, seed=7)
    assert report != weigh_expert(decoder, expert, (), None, seed=8)
    check_admission(report.model_copy(update={"mean_share": 1.0}), {})
    for change, error in ((_inflate_rows, RouterRowTooLong), (_inflate_network, ExpertTooLoud)):
        twin = copy.deepcopy(expert)
        with torch.no_grad():
            _each_layer(change)(twin)
        with pytest.raises(error):
            check_admission(weigh_expert(decoder, twin, (), None), {})


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    family=st.sampled_from(["olmo2", "llama", "olmoe"]),
    kind=st.sampled_from(["full", "narrow", "low_rank", "split", "int8"]),
    noise=st.sampled_from([0.1, 1.0, 30.0]),
    length=st.integers(1, 24),
    loud_norm=st.sampled_from(["attn_norm", "ffn_norm"]),
)
def test_no_text_gets_past_the_worst_case(
    seed: int, family: str, kind: ExpertKind, noise: float, length: int, loud_norm: str
) -> None:
    """For any tokens: no input is longer, no lead larger and no share higher than the analytic bounds say."""
    decoder = random_decoder(tiny_shape(family=family, renormalise=family == "llama"), seed)
    with torch.no_grad():
        for index in range(decoder.shape.n_layers):
            getattr(decoder.layer(index), loud_norm).weight.mul_(20)
    expert = random_expert(decoder, seed + 1, noise=noise, kind=kind).float()
    bounds = largest_inputs(decoder)
    rows = torch.tensor([prompt(seed, length)])
    worst = [layer.worst_logit for layer in weigh_expert(decoder, expert, (), None, seed=seed).layers]
    seen = []

    def watch(layer: int, x_BSD: torch.Tensor, routing: object) -> None:
        lead = expert.layer(layer).router.row - decoder.layer(layer).router.row
        weights_TE = routing.weights_TE.double()
        share = float((weights_TE[:, 1] / weights_TE.sum(-1)).max())
        seen.append((layer, float(x_BSD.norm(dim=-1).max()), float((x_BSD @ lead).max()), share))

    with torch.no_grad():
        decoder.hidden(rows, (expert,), top_k=2, observe=watch)
    assert len(seen) == decoder.shape.n_layers
    for layer, longest, lead, share in seen:
        assert longest <= bounds[layer] * 1.0001
        assert lead <= worst[layer] * 1.0001 + 1e-5
        assert share <= 1 / (1 + math.exp(-min(worst[layer], 700))) + 1e-6


def test_text_that_was_not_probed_is_bounded_and_not_seen() -> None:
    """What opens an admitted expert elsewhere (here: own text) shows on no scale, only in the bound."""
    decoder, expert, declared = _honest()
    probed = weigh_expert(decoder, expert, _UNSEEN, _TOKENIZER)
    check_admission(probed, declared)
    elsewhere = weigh_expert(decoder, expert, texts("own", 6, seed=8), _TOKENIZER)
    assert elsewhere.mean_share > 5 * probed.mean_share
    worst = max(layer.worst_logit for layer in probed.layers)
    assert max(layer.worst_logit for layer in elsewhere.layers) == worst  # known before any text is read
    assert max(layer.share for layer in elsewhere.layers) <= 1 / (1 + math.exp(-worst))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-60, 60), bias=st.floats(0, 1e6))
def test_neither_gate_nor_bias_raises_a_share(seed: int, shift: float, bias: float) -> None:
    """An expert with any gate and any positive bias takes at most what it takes without them."""
    decoder = random_decoder(tiny_shape(), seed)
    gated = random_expert(decoder, seed + 1, noise=0.3)
    bare = copy.deepcopy(gated)
    with torch.no_grad():
        for index in range(len(gated.layers)):
            part, gate = gated.layer(index), gated.layer(index).gate
            assert gate is not None
            gate.bias.add_(shift)
            assert part.router.bias is not None
            part.router.bias.fill_(bias)
            bare.layer(index).gate = None
            plain = bare.layer(index).router.bias
            assert plain is not None
            plain.zero_()
    shares = [weigh_expert(decoder, one, (), None, seed=seed).layers[0].share for one in (gated, bare)]
    assert shares[0] <= shares[1] + 1e-6  # the first layer's input is the same for both


def test_a_copy_of_the_public_network_takes_half() -> None:
    """The scales are true: a copy has half of routing and output, gain 1, and public text costs nothing."""
    decoder = _honest()[0]
    report = weigh_expert(decoder, upcycle(decoder), _UNSEEN, _TOKENIZER)
    assert report.public_excess == pytest.approx(0, abs=1e-5)
    for layer in report.layers:
        assert layer.share == pytest.approx(0.5, abs=1e-6)
        assert layer.output_share == pytest.approx(0.5, abs=1e-6)
        assert layer.gain == pytest.approx(1, abs=1e-6)
        assert (layer.row_logit, layer.worst_logit, layer.gate) == (0, 0, 1)
    check_admission(report, {})


def _report(**changes: float) -> AdmissionReport:
    layer = dict.fromkeys(LayerReading.model_fields, 0.1)
    fields = {"mean_share": 0.1, "mean_output_share": 0.1, "max_document_share": 0.1, "public_excess": 0.0}
    inner = {name: value for name, value in changes.items() if name in layer}
    outer = {name: value for name, value in changes.items() if name not in layer}
    return AdmissionReport(
        weighed=True,
        probe="public text",
        documents=1,
        tokens=1,
        layers=(LayerReading(**layer), LayerReading(**(layer | inner))),
        **(fields | outer),
    )


@pytest.mark.parametrize(
    ("over", "declared", "error"),
    [
        ({"row_logit": 22.1}, 0.5, RouterRowTooLong),
        ({"gain": 4.1}, 0.5, ExpertTooLoud),
        ({"mean_share": 0.161}, 0.1, ShareAboveCalibration),
        ({"mean_share": 0.51}, 1.0, ShareAboveCalibration),
        ({"mean_share": 0.51}, None, ShareAboveCalibration),
        ({"mean_share": 0.011}, -5.0, ShareAboveCalibration),
        ({"share": 0.76}, 0.5, ShareAboveCalibration),
        ({"mean_output_share": 0.21}, 0.5, ExpertTooLoud),
        ({"public_excess": 0.011}, 0.5, PublicTextWorse),
    ],
)
def test_each_limit_stands_alone(
    over: dict[str, float], declared: float | None, error: type[AdmissionRefused]
) -> None:
    """Each figure just above its limit is refused by its own code, whatever a manifest claims for itself."""
    calibration = {} if declared is None else {"public_share": declared}
    with pytest.raises(AdmissionRefused) as caught:
        check_admission(_report(**over), calibration)
    assert type(caught.value) is error
    assert all(isinstance(value, int | float | None) for value in caught.value.facts.values())


def test_figures_within_the_limits_are_admitted() -> None:
    """The report that the refusals above start from is admitted, so that each of them has one cause."""
    check_admission(_report(), {"public_share": 0.1})
    check_admission(_report(mean_share=0.159), {"public_share": 0.1})


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[1]", b"\xff", b"{" * 5000, b" " * (MAX_REPORT_BYTES + 1)],
    ids=["empty", "no fields", "list", "no text", "deep", "long"],
)
def test_a_strange_report_admits_nothing(data: bytes) -> None:
    """What a confined process wrote is read as untrusted."""
    with pytest.raises(ReportInvalid):
        parse_report(data)


def test_impossible_figures_are_no_report() -> None:
    """Shares outside 0..1 and infinities do not pass as figures; a true report comes back as it was."""
    report = _report()
    assert parse_report(report.model_dump_json().encode()) == report
    for field, value in (("mean_share", "1.5"), ("public_excess", "1e999"), ("mean_output_share", "-0.1")):
        document = report.model_dump_json().replace(
            f'"{field}":{getattr(report, field)}', f'"{field}":{value}'
        )
        assert value in document
        with pytest.raises(ReportInvalid):
            parse_report(document.encode())
