# SPDX-License-Identifier: Apache-2.0
"""Law 16: checkpoints come in with the reference's logits; what goes out opens with ours, or says why not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_builders import ARCHITECTURES, bring_in, imported_bank, random_model, seal_base, seal_expert, terms
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensor_builders import prompt, random_decoder, random_expert, tiny_shape

from model_core.errors import ExportNotExact
from model_core.interop.exporting import ExportTerms, export_composition
from model_core.interop.importing import import_folder
from model_core.network.bank import ExpertBank, forward_logits
from model_core.network.expert import Expert
from model_core.packing.forms import EXPERT_KINDS
from model_core.text.documents import Document

TERMS = ExportTerms(title="law 16")


def reference_logits(folder: Path, ids: tuple[int, ...]) -> torch.Tensor:
    """What transformers computes with a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # the grouped kernel wants strides that odd sizes lack
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Within 1e-4."""
    return torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(architecture=st.sampled_from(ARCHITECTURES), seed=st.integers(1000, 9999), length=st.integers(1, 20))
@example(architecture="FlexOlmoForCausalLM", seed=6808, length=1)  # one expert, renormalising: goes out dense
def test_a_checkpoint_comes_in_goes_out_and_comes_in_as_the_same_model(
    architecture: str, seed: int, length: int
) -> None:
    """Logits are the reference's on both ways, and the second way in finds the digests of the first."""
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        model = random_model(architecture, seed)
        first = bring_in(model, work)
        bank, ids = imported_bank(first), prompt(seed, length)
        ours = forward_logits(bank, ids, bank.digests, first.layout.top_k)
        with torch.no_grad():
            assert close(ours, model(torch.tensor([ids])).logits[0])
        report = export_composition(first.base, first.experts, work / "out", TERMS, top_k=first.layout.top_k)
        assert close(ours, reference_logits(work / "out", ids))
        names = {bundle.digest: bundle.manifest.name for bundle in first.experts}
        again = import_folder(
            work / "out", work / "again", terms(expert_names=[names[digest] for digest in report.experts])
        )
        assert again.base.digest == first.base.digest
        assert tuple(bundle.digest for bundle in again.experts) == report.experts


@settings(max_examples=10, deadline=None)
@given(
    family=st.sampled_from(["olmo2", "llama", "olmoe"]),
    seed=st.integers(0, 999),
    kinds=st.lists(st.sampled_from(EXPERT_KINDS), max_size=3),
    flaw=st.sampled_from([None, "bias", "gates"]),
    tied=st.booleans(),
    data=st.data(),
)
def test_a_composition_opens_with_equal_logits_or_is_refused_and_measured(
    family: Any, seed: int, kinds: list[Any], flaw: str | None, tied: bool, data: st.DataObject
) -> None:
    """Without gates and biases exact; with them a strict export refuses and an approximate one measures."""
    top_k = data.draw(st.integers(1, 1 + len(kinds)), label="k")
    shape = tiny_shape(family=family, renormalise=family != "olmoe", tie_embeddings=tied)
    decoder = random_decoder(shape, seed)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        base = seal_base(decoder, work / "base")
        bank = ExpertBank.open(base.digest, base.folder)
        bundles = []
        for number, kind in enumerate(kinds):
            expert = random_expert(decoder, seed + number, kind=kind, gated=flaw == "gates")
            _set_biases(expert, -0.4 if flaw == "bias" else 0.0)
            bundles.append(seal_expert(expert, base, f"expert-{number}", work / f"expert-{number}"))
            bank.add_folder(bundles[-1].digest, bundles[-1].folder)
        ids = prompt(seed, 11)
        served = forward_logits(bank, ids, bank.digests, top_k)
        if not (flaw and kinds):
            export_composition(base, bundles, work / "out", TERMS, top_k=top_k)
            assert close(served, reference_logits(work / "out", ids))
            return
        with pytest.raises(ExportNotExact):
            export_composition(base, bundles, work / "out", TERMS, top_k=top_k)
        text = Document(id="a", text=" ".join(f"w{number}" for number in range(1, 12)))
        report = export_composition(
            base, bundles, work / "out", TERMS, top_k=top_k, approximate=True, documents=[text]
        )
        assert report.difference is not None
        ids = (0, *range(1, 12))
        apart = forward_logits(bank, ids, bank.digests, top_k) - reference_logits(work / "out", ids)
        assert report.difference.max_logit == pytest.approx(float(apart.abs().max()), abs=1e-4)
        assert f"{report.difference.max_logit:.4g}" in (work / "out" / "README.md").read_text()


def _set_biases(expert: Expert, value: float) -> None:
    for layer in range(len(expert.layers)):
        expert.layer(layer).router.get_buffer("bias").fill_(value)
