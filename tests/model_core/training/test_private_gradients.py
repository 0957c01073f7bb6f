# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from training_builders import same_tensors, texts, tiny_decoder, tiny_shape, tiny_tokenizer

import model_core.training.expert as expert_module
from model_core.errors import CheckpointInvalid, RecipeRefused
from model_core.evaluation.bits import bits_per_byte, bits_per_document
from model_core.network.checkpoint import save_expert
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.network.mixture import Routing
from model_core.text.batches import PackedText
from model_core.text.documents import Document
from model_core.training.base import pretrain
from model_core.training.calibration import bound_router_rows, residual_norms
from model_core.training.expert import ExpertResult, train_expert
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.gates import token_rows
from model_core.training.objective import PairObjective
from model_core.training.privacy import PrivacyPlan
from model_core.training.private_expert import lower_bias
from model_core.training.private_gradients import (
    KEY_FILE,
    DocumentRows,
    PrivateSteps,
    SecretStream,
    document_rows,
    run_key,
)
from model_core.training.recipe import TrainingRecipe

_TOKENIZER = tiny_tokenizer()
_END = _TOKENIZER.end_of_text_id
_RECIPE = ExpertRecipe.of(
    {
        "steps": 6,
        "batch_rows": 3,
        "accumulation": 2,
        "sequence_tokens": 32,
        "precision": "fp32",
        "fit_tokens": 64,
        "checkpoint_every": 2,
        "gated": False,
        "dp_noise_multiplier": 1.0,
    }
)


class _Toy(nn.Module):
    """A model whose gradient on a row is the row of a table that its first token names."""

    def __init__(self, table_ND: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.zeros(table_ND.shape[1] - 3))
        self.right = nn.Parameter(torch.zeros(3))
        self.table_ND = table_ND

    def forward(self, ids_BS: Tensor, _targets_BS: Tensor) -> tuple[Tensor, Tensor]:
        loss = (torch.cat((self.left, self.right)) * self.table_ND[ids_BS[:, 0]]).sum(-1).mean()
        return loss, loss.detach()


def _plan(**changes: float) -> PrivacyPlan:
    facts: dict[str, float] = {
        "epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 1.0, "clip_norm": 1.0, "sampling_rate": 0.5,
        "expected_documents": 4, "documents": 8, "steps": 10,
    }  # fmt: skip
    return PrivacyPlan(**(facts | changes))  # type: ignore[arg-type]


def _rows(n_documents: int, windows: int = 1) -> DocumentRows:
    """Documents whose rows begin with their number."""
    rows = np.repeat(np.arange(n_documents), windows)[:, None] + np.zeros((1, 4), np.int64)
    packed = PackedText(rows_NS1=rows, tokens=rows.size, text_bytes=rows.size)
    return DocumentRows(packed=packed, first_rows=np.arange(n_documents + 1) * windows)


def _toy_steps(
    table_ND: Tensor, plan: PrivacyPlan, key: bytes = bytes(32)
) -> tuple[_Toy, PrivateSteps, DocumentRows]:
    model, rows = _Toy(table_ND), _rows(len(table_ND))
    steps = PrivateSteps(plan, rows, dict(model.named_parameters()), key=key, public=rows, end_of_text_id=-1)
    return model, steps, rows


def _summed(table_ND: Tensor, taken: list[int], clip_norm: float) -> Tensor:
    """The clipped sum over given documents, before the noise."""
    model, steps, rows = _toy_steps(table_ND, _plan(clip_norm=clip_norm))
    steps.accumulate(Accelerator(cpu=True), model, [rows.packed.batch(np.array([row])) for row in taken])
    parts = [parameter.grad for parameter in model.parameters()]
    return torch.cat([part for part in parts if part is not None])


def test_noise_is_really_added_with_the_planned_spread() -> None:
    """Over keys the gradient's mean is the clipped sum over B, its standard deviation noise * C / B."""
    table_ND = torch.randn(8, 503, generator=torch.Generator().manual_seed(1))
    plan = _plan(noise_multiplier=1.7, clip_norm=0.6, expected_documents=5)
    batch, found = np.arange(8), []
    for number in range(60):
        model, steps, rows = _toy_steps(table_ND, plan, key=number.to_bytes(32, "big"))
        accelerator = Accelerator(cpu=True)
        steps.step_rows(3)
        steps.accumulate(accelerator, model, [rows.packed.batch(batch)])
        steps.finish(accelerator, dict(model.named_parameters()))
        found.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
    noisy_KD = torch.stack(found).double()
    wanted_D = _summed(table_ND, list(range(8)), 0.6).double() / 5
    spread = 1.7 * 0.6 / 5
    rest_KD = (noisy_KD - wanted_D) / spread
    assert float(rest_KD.std()) == pytest.approx(1.0, abs=0.02)
    assert float(rest_KD.mean()) == pytest.approx(0.0, abs=0.02)
    # Coordinates and keys are independent: no pair is visibly correlated.
    assert float(torch.corrcoef(rest_KD).fill_diagonal_(0).abs().max()) < 0.25


def test_every_step_and_every_tensor_has_noise_of_its_own() -> None:
    """Noise that came twice could be taken off by a difference; a step that is done again draws the same."""
    model, steps, rows = _toy_steps(torch.zeros(2, 6), _plan())
    accelerator = Accelerator(cpu=True)

    def drawn(step: int) -> list[float]:
        steps.step_rows(step)
        steps.accumulate(accelerator, model, [rows.packed.batch(np.array([0, 1]))])
        steps.finish(accelerator, dict(model.named_parameters()))
        return torch.cat([model.left.grad, model.right.grad]).tolist()

    first, second = drawn(0), drawn(1)
    assert len({*first, *second}) == 12
    assert drawn(0) == first


def test_what_a_step_reports_is_public_text_and_noise() -> None:
    """The loss is that of a public row whatever documents were taken; the norm is that after the noise."""
    model, steps, rows = _toy_steps(torch.randn(8, 9), _plan())
    accelerator = Accelerator(cpu=True)
    with torch.no_grad():
        model.left.fill_(1.0)
    steps.step_rows(2)
    reported = {
        steps.accumulate(accelerator, model, [rows.packed.batch(np.array(taken))])
        for taken in ([0], [1, 5], [2, 3, 4, 6, 7])
    }
    assert len(reported) == 1
    assert reported.pop() == pytest.approx(float(model.table_ND[2, :-3].sum()), rel=1e-5)
    norm = steps.finish(accelerator, dict(model.named_parameters()))
    assert norm == pytest.approx(float(torch.cat([model.left.grad, model.right.grad]).norm()), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(1e-3, 1e6),
    clip_norm=st.floats(0.1, 10),
    n_documents=st.integers(1, 6),
)
def test_one_document_moves_the_sum_by_the_clip_norm_at_most(
    seed: int, scale: float, clip_norm: float, n_documents: int
) -> None:
    """Whatever one row's gradient is, adding it moves the sum by its length or C, whichever is less."""
    table_ND = torch.randn(n_documents + 1, 9, generator=torch.Generator().manual_seed(seed))
    table_ND[-1] *= scale
    others = list(range(n_documents))
    without_D = _summed(table_ND, others, clip_norm).double()
    with_D = _summed(table_ND, [*others, n_documents], clip_norm).double()
    moved = float((with_D - without_D).norm())
    wanted = min(clip_norm, float(table_ND[-1].double().norm()))
    assert moved == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_document_without_a_finite_gradient_counts_nothing() -> None:
    """NaN or infinity from one document leaves the sum of the others as it was."""
    table_ND = torch.randn(3, 9)
    table_ND[2, 4] = torch.inf
    assert torch.equal(_summed(table_ND, [0, 1, 2], 1.0), _summed(table_ND, [0, 1], 1.0))


class _Plain(nn.Module):
    """The pair's loss in a few lines of its own, which ``torch.func`` can look through."""

    def __init__(self, decoder: Decoder, expert: Expert) -> None:
        super().__init__()
        self.decoder, self.expert = decoder, expert

    def forward(self, ids_S: Tensor, targets_S: Tensor) -> Tensor:
        squares: list[Tensor] = []

        def watch(_layer: int, _h_BSD: Tensor, routing: Routing | None) -> None:
            assert routing is not None
            squares.append(routing.logits[0].logsumexp(-1).square().mean())

        logits_SV = self.decoder(ids_S[None], (self.expert,), top_k=2, observe=watch)[0]
        loss = torch.nn.functional.cross_entropy(logits_SV, targets_S)
        z_loss = logits_SV.logsumexp(-1).square().mean()
        return loss + 1e-3 * z_loss + 1e-2 * torch.stack(squares).mean()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_document_by_document_equal_those_of_vmap() -> None:
    """The loop over documents and ``torch.func.vmap`` of the gradient give the same clipped sum."""
    decoder = tiny_decoder()
    expert = upcycle(decoder)
    objective = PairObjective(decoder, expert, logit_z_loss=1e-3, router_z_loss=1e-2)
    long = [Document(id=item.id, text=item.text * 3) for item in texts("own", 5)]
    rows = document_rows(long, _TOKENIZER, sequence_tokens=16)
    parameters = dict(objective.trainable())
    plan = _plan(clip_norm=0.35)
    steps = PrivateSteps(plan, rows, parameters, key=bytes(32), public=rows, end_of_text_id=_END)
    ids_BS, targets_BS = rows.packed.batch(rows.first_rows[:-1])
    assert not (targets_BS == _END).any()
    steps.accumulate(Accelerator(cpu=True), objective, [(ids_BS, targets_BS)])

    plain = _Plain(decoder, expert)

    def loss(trained: dict[str, Tensor], ids_S: Tensor, targets_S: Tensor) -> Tensor:
        value: Tensor = functional_call(plain, trained, (ids_S, targets_S))
        return value

    trained = {name: value.detach() for name, value in parameters.items()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))(trained, ids_BS, targets_BS)
    norms_B = torch.stack([value.flatten(1).square().sum(1) for value in each.values()]).sum(0).sqrt()
    assert float(norms_B.min()) < 0.35 < float(norms_B.max()), "some must be clipped, some not"
    factors_B = (0.35 / norms_B).clamp(max=1.0)
    for name, value in each.items():
        wanted = torch.einsum("b,b...->...", factors_B, value)
        assert torch.allclose(parameters[name].grad, wanted, atol=1e-6), name


def test_every_document_is_taken_with_the_same_probability_independently() -> None:
    """Over many steps: each document's rate, the binomial spread of batch sizes, every window in turn."""
    n_documents, windows, rate, n_steps = 40, 3, 0.2, 1500
    rows = _rows(n_documents, windows)
    steps = PrivateSteps(_plan(sampling_rate=rate), rows, {}, key=bytes(32), public=rows, end_of_text_id=-1)
    taken = np.zeros((n_steps, n_documents))
    seen = np.zeros(n_documents * windows)
    for step in range(n_steps):
        chosen = steps.step_rows(step)
        assert len(set(chosen // windows)) == len(chosen), "a document counts once a step"
        taken[step, chosen // windows] = 1
        seen[chosen] += 1
    assert abs(taken.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / taken.size)
    assert np.abs(taken.mean(0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / n_steps)
    assert taken.sum(1).std() == pytest.approx(np.sqrt(n_documents * rate * (1 - rate)), rel=0.08)
    assert np.abs(seen - n_steps * rate / windows).max() < 5 * np.sqrt(n_steps * rate / windows)
    assert np.array_equal(steps.step_rows(7), steps.step_rows(7))


def test_an_empty_sample_is_a_step_of_noise_alone() -> None:
    """A step that happens to take no document still draws its noise and moves the weights."""
    model, steps, _ = _toy_steps(torch.randn(4, 9), _plan(sampling_rate=0.0))
    assert len(steps.step_rows(0)) == 0
    accelerator = Accelerator(cpu=True)
    steps.accumulate(accelerator, model, [])
    assert steps.finish(accelerator, dict(model.named_parameters())) > 0


def test_several_processes_are_refused() -> None:
    """Each would have to draw its share of one sample and one noise."""

    class _Two:
        num_processes = 2

    model, steps, _ = _toy_steps(torch.randn(4, 9), _plan())
    with pytest.raises(RecipeRefused):
        steps.accumulate(_Two(), model, [])  # type: ignore[arg-type]


def test_the_secret_stream_is_normal_and_never_repeats() -> None:
    """Moments and tails of a standard normal; another key, step or stream shares no number."""
    stream = SecretStream(bytes(32))
    numbers = stream.normals(1, 2, 100_001).numpy()
    assert len(numbers) == 100_001
    assert abs(numbers.mean()) < 0.015
    assert numbers.std() == pytest.approx(1, abs=0.01)
    for bound, share in ((1.0, 0.3173), (2.0, 0.0455), (3.0, 0.0027)):
        assert (np.abs(numbers) > bound).mean() == pytest.approx(share, rel=0.2)
    others = [
        stream.normals(1, 3, 100),
        stream.normals(2, 2, 100),
        SecretStream(b"\1" * 32).normals(1, 2, 100),
    ]
    drawn = np.concatenate([numbers[:100], *[other.numpy() for other in others]])
    assert len(set(drawn.tolist())) == 400


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 100), words=st.integers(1, 60), tokens=st.sampled_from([8, 16, 33]))
def test_rows_hold_one_document_each_and_every_token_once(seed: int, words: int, tokens: int) -> None:
    """Windows of a document, joined, are the document with its closing token; no row holds two."""
    documents = texts("own", 3, words=words, seed=seed)
    rows = document_rows(documents, _TOKENIZER, sequence_tokens=tokens)
    for place, document in enumerate(documents):
        mine = rows.packed.rows_NS1[rows.first_rows[place] : rows.first_rows[place + 1]]
        targets = mine[:, 1:].flatten()
        (ends,) = np.nonzero(targets == _END)
        assert targets[: ends[0]].tolist() == _TOKENIZER.encode(document.text)
        assert (targets[ends[0] :] == _END).all()
        assert len(targets) - ends[0] <= tokens
        assert mine[0, 0] == _TOKENIZER.begin_id


def _train(
    folder: Path | None,
    *,
    documents: tuple[Document, ...] = texts("own", 40),
    recipe: ExpertRecipe = _RECIPE,
    stop_after: int = 0,
) -> tuple[Decoder, ExpertResult]:
    decoder, count = tiny_decoder(), 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == stop_after

    result = train_expert(
        decoder,
        _TOKENIZER,
        documents,
        texts("public", 20, seed=9),
        recipe,
        seed=1,
        work_folder=folder,
        stop=stop,
    )
    return decoder, result


def _bytes_of(result: ExpertResult, path: Path) -> bytes:
    assert result.expert is not None
    save_expert(result.expert, path)
    return path.read_bytes()


def test_a_private_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Stopped and resumed with its key, a run draws the same samples and noise; the base keeps its bytes."""
    decoder, whole = _train(tmp_path / "whole")
    assert same_tensors(decoder, tiny_decoder())
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / KEY_FILE).write_bytes((tmp_path / "whole" / KEY_FILE).read_bytes())
    _, cut = _train(tmp_path / "cut", stop_after=3)
    assert cut.expert is None
    _, resumed = _train(tmp_path / "cut")
    assert resumed.outcome.resumed_from == 3
    assert _bytes_of(whole, tmp_path / "a") == _bytes_of(resumed, tmp_path / "b")
    assert (tmp_path / "cut/metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_the_noise_cannot_be_drawn_again_from_what_is_published(tmp_path: Path) -> None:
    """Equal recipe, seed and data in two work folders give other weights; only the key file decides."""
    _, first = _train(tmp_path / "a")
    _, second = _train(tmp_path / "b")
    assert _bytes_of(first, tmp_path / "1") != _bytes_of(second, tmp_path / "2")
    assert (tmp_path / "a" / KEY_FILE).stat().st_mode & 0o077 == 0
    assert len((tmp_path / "a" / KEY_FILE).read_bytes()) == 32
    (tmp_path / "a" / KEY_FILE).unlink()
    with pytest.raises(CheckpointInvalid):
        _train(tmp_path / "a")


def test_two_runs_in_one_folder_never_share_their_noise(tmp_path: Path) -> None:
    """The key hangs on what the run is: another recipe or data set draws other numbers."""
    keys = {run_key(tmp_path, {"recipe": recipe, "data": data}) for recipe in "ab" for data in "cd"}
    assert len(keys) == 4
    assert run_key(tmp_path, {"recipe": "a", "data": "c"}) in keys
    assert run_key(None, {"recipe": "a"}) != run_key(None, {"recipe": "a"})


def test_own_text_reaches_nothing_but_the_noised_steps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With sampling off, another data set of equal size gives the same expert and metrics, byte for byte.

    A narrow expert chooses its neurons by text: under privacy by public text.
    """
    recipe = ExpertRecipe.of({**_RECIPE.model_dump(), "expert_kind": "narrow", "expert_width": 24})
    monkeypatch.setattr(PrivateSteps, "step_rows", _takes_nothing)
    monkeypatch.setattr("model_core.training.private_expert.run_key", lambda *_: bytes(32))
    found = []
    for name, documents in (("own", texts("own", 40)), ("other", texts("public", 40, words=90, seed=3))):
        _, result = _train(tmp_path / name, documents=documents, recipe=recipe)
        metrics = (tmp_path / name / "metrics.jsonl").read_text()
        found.append(
            (_bytes_of(result, tmp_path / f"{name}.safetensors"), metrics, result.privacy, result.gates)
        )
    assert found[0] == found[1]


def _takes_nothing(self: PrivateSteps, step: int) -> np.ndarray:
    self._step = step
    return np.zeros(0, np.int64)


def test_a_recipe_without_privacy_never_comes_near_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing private is planned, no key is made, and gates and calibration are what they were."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for name in ("private_run", "random_rows", "lower_bias"):
        monkeypatch.setattr(expert_module, name, never)
    recipe = ExpertRecipe.of({**_RECIPE.model_dump(), "dp_noise_multiplier": 0.0, "gated": True, "steps": 2})
    _, result = _train(tmp_path, recipe=recipe)
    assert result.privacy is None
    assert result.calibration is not None
    assert result.gates
    assert not (tmp_path / KEY_FILE).exists()


def test_a_noisy_expert_is_held_back_on_public_text_alone() -> None:
    """Its bias falls until the pair is within the tolerance of a base that knows public text."""
    settings = TrainingRecipe(
        steps=40, batch_rows=4, sequence_tokens=32, learning_rate=1e-2, precision="fp32"
    )
    decoder, _ = pretrain(tiny_shape(), texts("public", 30), _TOKENIZER, settings, seed=1)
    expert = upcycle(decoder).requires_grad_(False)
    for tensor in expert.state_dict().values():
        tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    public = texts("public", 6, seed=9)
    norms = residual_norms(decoder, token_rows(public, _TOKENIZER, max_tokens=64))
    assert bound_router_rows(expert, norms, logit_bound=20.0) > 0
    open_bits = bits_per_byte(bits_per_document(decoder, public, _TOKENIZER, experts=(expert,), top_k=2))
    excess = lower_bias(decoder, expert, public, _TOKENIZER, tolerance=0.02)
    base = bits_per_byte(bits_per_document(decoder, public, _TOKENIZER))
    pair = bits_per_byte(bits_per_document(decoder, public, _TOKENIZER, experts=(expert,), top_k=2))
    assert open_bits > 1.1 * base
    assert excess == pytest.approx(pair / base - 1)
    assert excess <= 0.02
    biases = [expert.layer(layer).router.bias for layer in range(2)]
    assert len({float(bias) for bias in biases if bias is not None}) == 1
    assert all(bias is not None and float(bias) < 0 for bias in biases)
