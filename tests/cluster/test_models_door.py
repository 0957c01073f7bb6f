# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face mixture comes in by command, is permitted expert by expert, and leaves as what it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner, Result

from cluster.cli.main import root
from tests.model_core.hf_builders import random_model, save_folder


def _run(town: Any, who: str, *words: str) -> Result:
    return CliRunner().invoke(root, ["--url", town.url, "--key", town.keys[who], "--json", *words])


def _good(town: Any, who: str, *words: str) -> Any:
    done = _run(town, who, *words)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def _gentle(experts: int, taken: int) -> Any:
    """A random mixture whose router rows are of the length that honest ones have."""
    model = random_model("FlexOlmoForCausalLM", 3, num_experts=experts, num_experts_per_tok=taken)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                parameter.mul_(0.1)
    return model


def _came_in(town: Any, folder: Path, names: tuple[str, ...]) -> tuple[Any, dict[str, Any], list[str]]:
    """A FlexOlmo folder, its base and its named experts, imported by operator and owner."""
    model = _gentle(1 + len(names), 1 + len(names))
    theirs = save_folder(model, folder / "theirs")
    stated = ["--license", "CC0-1.0", "--trained-on", "Nothing.", "--tenant", "north"]
    named = [word for name in names for word in ("--expert-name", name)]
    out = ["--out", str(folder / "out")]
    base = _good(town, "operator", "base", "import", str(theirs), "--name", "flex", *stated, *out, *named)
    experts = [
        _good(town, "ada", "expert", "import", str(folder / "out" / "experts" / name), "--seal",
              "--dataset-ids", town.ids["dataset"])["id"]
        for name in names
    ]  # fmt: skip
    return model, base, experts


def _permitted(town: Any, base: dict[str, Any], experts: list[str], actions: tuple[str, ...]) -> None:
    """Listings, consents, grants, rules and a deployment for some actions."""
    items: list[dict[str, Any]] = []
    for expert in experts:
        items.append({"kind": "listing.put", "expert_id": expert, "license": "CC0-1.0",
                      "price_micro_per_1k_tokens": 0})  # fmt: skip
        for action in actions:
            items.append(
                {"kind": "consent.give", "expert_id": expert, "purpose": "research", "action": action}
            )
            items.append(
                {"kind": "grant.give", "expert_id": expert, "consumer_tenant": "apps", "action": action}
            )
    town.approve("bob", town.post("ada", "/changes", title="Offer", items=items))
    rule = town.post("carol", "/rules", text="May leave.", purpose="research", action="export_weights")
    town.approve("dora", rule)
    wanted = town.put("dev", "/deployments/flex-research", purpose="research", region="eu", commercial=False,
                      base_digest=base["id"], candidates=experts, top_k=3)  # fmt: skip
    town.approve("carol", wanted)


def test_a_mixture_comes_in_and_leaves_with_equal_logits(town: Any, tmp_path: Path) -> None:
    """Imported, permitted and exported, the folder opens in transformers and computes what it computed."""
    model, base, experts = _came_in(town, tmp_path, ("alpha", "beta"))
    _permitted(town, base, experts, ("infer", "export_weights"))
    shown = _good(town, "dev", "deployment", "export", "flex-research", str(tmp_path / "back"), "--yes")
    assert shown["exact"] is True
    assert sorted(shown["experts"]) == ["north/alpha", "north/beta"]
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    back.set_experts_implementation("eager")
    ids = torch.tensor([[1, 5, 9, 33, 2]])
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=1e-4, rtol=0)
    card = (tmp_path / "back" / "README.md").read_text()
    assert "cannot be called back" in card
    assert shown["decision_id"] in card


def test_one_owner_who_says_no_keeps_the_composition_here(town: Any, tmp_path: Path) -> None:
    """Without the consent to export nothing is written, and the sentence names what is missing."""
    _, base, experts = _came_in(town, tmp_path, ("alpha",))
    _permitted(town, base, experts, ("infer",))
    refused = _run(town, "dev", "deployment", "export", "flex-research", str(tmp_path / "back"), "--yes")
    assert refused.exit_code != 0
    assert "export_weights" in str(refused.exception)
    assert not (tmp_path / "back").exists()
    alone = _good(
        town, "dev", "deployment", "export", "flex-research", str(tmp_path / "back"), "--only-permitted"
    )
    assert alone["experts"] == []
    assert alone["architecture"] == "Olmo2ForCausalLM"


@pytest.mark.parametrize("missing", ["--name", "--license", "--trained-on"])
def test_what_a_folder_does_not_say_is_asked_for(tmp_path: Path, missing: str) -> None:
    """A model folder without a stated name, license or origin is refused with the flag to give."""
    theirs = save_folder(random_model("Olmo2ForCausalLM", 1), tmp_path / "theirs")
    stated = {"--name": "x", "--license": "MIT", "--trained-on": "Nothing."}
    words = [word for flag, value in stated.items() if flag != missing for word in (flag, value)]
    nobody = ["--url", "http://127.0.0.1:9", "--key", "x"]
    refused = CliRunner().invoke(root, [*nobody, "base", "import", str(theirs), *words])
    assert refused.exit_code == 2
    assert missing in refused.stderr


def test_an_unsupported_field_is_named(town: Any, tmp_path: Path) -> None:
    """A folder that computes something else is refused with the name of the field; nothing is registered."""
    theirs = save_folder(random_model("LlamaForCausalLM", 1), tmp_path / "theirs")
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    before = town.state()
    stated = ["--name", "x", "--license", "MIT", "--trained-on", "Nothing."]
    refused = _run(town, "operator", "base", "import", str(theirs), *stated)
    assert refused.exit_code != 0
    assert "attention_bias" in str(refused.exception)
    assert town.state() == before


def test_a_converted_bundle_needs_the_owners_seal(town: Any, tmp_path: Path) -> None:
    """Without --seal a bundle of a transfer key is refused: nobody known made it."""
    theirs = save_folder(_gentle(2, 2), tmp_path / "theirs")
    stated = ["--name", "flex", "--license", "MIT", "--trained-on", "Nothing.", "--tenant", "north"]
    _good(town, "operator", "base", "import", str(theirs), *stated, "--out", str(tmp_path / "out"))
    expert = str(tmp_path / "out" / "experts" / "flex-expert-1")
    refused = _run(town, "ada", "expert", "import", expert, "--dataset-ids", town.ids["dataset"])
    assert refused.exit_code != 0
    assert "not signed" in str(refused.exception)
    stolen = _run(town, "sue", "expert", "import", expert, "--seal", "--dataset-ids", town.ids["dataset"])
    assert "another tenant" in str(stolen.exception)
