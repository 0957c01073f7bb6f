# SPDX-License-Identifier: Apache-2.0
"""Admission at both doors: an expert is weighed before it is countersigned; a refused one leaves no trace."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import training_builders

from cluster.errors import WeighingFailed
from cluster.office.requests import answer_operation
from cluster.office.scales import Scales, Weighed
from cluster.operations.catalogue import OPERATIONS
from cluster.operations.staging import staged_path, unpacked_folder
from model_core.errors import AdmissionRefused, ExpertTooLoud, ReportInvalid, ShareAboveCalibration
from model_core.packing.admission import AdmissionLimits, AdmissionReport, LayerReading
from model_core.packing.bundle import CheckedBundle, write_bundle
from model_core.packing.canonical import digest_file
from model_core.packing.ids import new_id
from model_core.packing.keys import SigningKey, load_or_create_key
from model_core.packing.store import DirectoryStore
from tenants.workshop import enclosure

pytestmark = pytest.mark.skipif(enclosure.landlock_abi() < 1, reason="this kernel has no Landlock")

_GOOD = AdmissionReport(
    weighed=True,
    probe="public text",
    documents=3,
    tokens=90,
    mean_share=0.01,
    mean_output_share=0.01,
    max_document_share=0.02,
    public_excess=0.001,
    layers=(
        LayerReading(share=0.01, output_share=0.01, gain=1.1, row_logit=9, worst_logit=30, gate=0.01),
        LayerReading(share=0.01, output_share=0.01, gain=1.2, row_logit=8, worst_logit=30, gate=0.01),
    ),
)


def _saying(report: AdmissionReport | str, *, first: str = "") -> tuple[str, ...]:
    """A child that needs no tensors: it leaves a prepared report and says that it is done."""
    text = report if isinstance(report, str) else report.model_dump_json()
    script = (
        "import json, os, pathlib, sys, time\n"
        "order = json.loads(sys.stdin.readline())\n"
        f"{first}\n"
        f"pathlib.Path(order['work_folder'], 'report.json').write_text({text!r})\n"
        'print(json.dumps({"kind": "done"}), flush=True)\n'
    )
    return (sys.executable, "-I", "-c", script)


def _loud() -> AdmissionReport:
    last = _GOOD.layers[1].model_copy(update={"gain": 90.0})
    return _GOOD.model_copy(update={"layers": (_GOOD.layers[0], last)})


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts another command in the place of the weighing child."""

    def become(command: tuple[str, ...]) -> None:
        monkeypatch.setattr("cluster.office.scales._COMMAND", command)

    return become


class _Kept:
    """What a refused admission must not change: rows, stored bundles, staged files, scratch folders."""

    def __init__(self, town: Any) -> None:
        self._town = town
        self._before = self._look()

    def _look(self) -> tuple[Any, ...]:
        root = self._town.home.root
        stored = sorted(str(path) for path in (root / "artifacts").rglob("*"))
        scratch = [path.name for path in (root / "weighing").glob("*")]
        return self._town.state(), stored, self._town.staged(), scratch

    def check(self) -> None:
        assert self._look() == self._before


# -- the job's door ----------------------------------------------------------------------------------------


def _sealing_job(town: Any, bundles: Any, folder: Path) -> tuple[str, int, str]:
    """A claimed job of north that has sealed a bundle; its id, fence and folder."""
    town.post("ada", "/jobs", name="letters", dataset_id=town.ids["dataset"])
    claim = town.wait(town.office.claim_job("frm_test"))
    for state in ("running", "sealing"):
        town.wait(town.office.job_progress(claim.job_id, claim.fence, state, []))
    bundles.owner = load_or_create_key(town.home.owner_key("north"))
    base = bundles.base(folder / "base", signed=False, calibrated=False)
    assert base.digest == town.ids["base"]
    sealed = bundles.expert(folder / "sealed", base, signed=False, tenant="north", name="letters", seed=5)
    return claim.job_id, claim.fence, str(sealed.folder)


def test_a_jobs_expert_is_weighed_before_it_is_admitted(
    town: Any, bundles: Any, tmp_path: Path, children: Callable[..., None]
) -> None:
    """A sealed bundle that is not admissible is neither countersigned nor stored nor registered."""
    job, fence, sealed = _sealing_job(town, bundles, tmp_path)
    kept, seal = _Kept(town), Path(sealed, "seal.json").read_bytes()
    children(_saying(_loud()))
    with pytest.raises(ExpertTooLoud, match="layer 1"):
        town.wait(town.office.finish_job(job, fence, sealed))
    kept.check()
    assert Path(sealed, "seal.json").read_bytes() == seal
    children(_saying(_GOOD))
    done = town.wait(town.office.finish_job(job, fence, sealed))
    assert town.wait(town.office.finish_job(job, fence, sealed)) == done
    shown = town.get("ada", f"/experts/{done.expert_id}")
    assert shown["admission"]["max_gain"] == 1.2
    assert shown["admission"]["bundle_digest"] == shown["bundle_digest"]
    chained = town.get("aud", "/audit/records", limit=500)["items"]
    weighed = [one["object"] for one in chained if one["action"] == "experts.weigh"]
    assert weighed.count(f"experts/{done.expert_id}") == 1


# -- the owner's door --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighed", [None, "sha256:" + "0" * 64])
def test_a_bundle_without_figures_of_its_own_is_not_admitted(
    town: Any, bundles: Any, tmp_path: Path, weighed: str | None
) -> None:
    """The operation itself refuses what nobody weighed, also with the figures of another bundle."""
    bundles.owner = load_or_create_key(town.home.owner_key("north"))
    base = bundles.base(tmp_path / "base", signed=False, calibrated=False)
    expert = bundles.expert(tmp_path / "expert", base, signed=False, tenant="north", name="letters", seed=6)
    upload = new_id("upl")
    shutil.copytree(expert.folder, unpacked_folder(staged_path(town.home.uploads, upload)))
    payload = {"upload": {"id": upload, "bundle_digest": expert.digest}, "dataset_ids": [town.ids["dataset"]]}

    def ask(desk: Any, digest: str | None) -> Any:
        desk.weighed = None if digest is None else Weighed(digest=digest, report=_GOOD)
        return answer_operation(desk, OPERATIONS["experts.import"], town.keys["ada"], payload, None)

    kept = _Kept(town)
    with pytest.raises(WeighingFailed):
        town.wait(town.office.do(lambda desk: ask(desk, weighed)))
    kept.check()
    assert town.wait(town.office.do(lambda desk: ask(desk, expert.digest)))["state"] == "sealed"


# -- the scales themselves ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "seconds", "error"),
    [
        (_saying(_GOOD.model_dump_json().replace('"gain":1.2', '"gain":-1')), 20.0, ReportInvalid),
        (_saying(_GOOD, first="os._exit(0)"), 20.0, WeighingFailed),
        (_saying(_GOOD, first="os.kill(os.getpid(), 9)"), 20.0, WeighingFailed),
        (_saying(_GOOD, first="time.sleep(60)"), 0.3, WeighingFailed),
        (_saying(_GOOD, first="print('no event', flush=True); time.sleep(60)"), 20.0, WeighingFailed),
        (_saying(_GOOD, first="bytearray(80 << 30)"), 20.0, WeighingFailed),
        (_saying("x" * (2 << 20)), 20.0, WeighingFailed),
    ],
    ids=["impossible figure", "no word", "killed", "slow", "chatter", "memory", "long report"],
)
def test_a_child_that_misbehaves_admits_nothing(
    bundles: Any, tmp_path: Path, town: Any, command: tuple[str, ...], seconds: float, error: type[Exception]
) -> None:
    """Whatever becomes of the child, an expert without believable figures is not admitted, and soon."""
    store = DirectoryStore(tmp_path / "store")
    base = bundles.base(tmp_path / "base")
    store.put_bundle(base.folder, base.digest)
    expert = bundles.expert(tmp_path / "expert", base)
    began = time.monotonic()
    with pytest.raises(error):
        Scales(town.home, store, seconds=seconds, command=command).weigh(expert)
    assert time.monotonic() - began < 15
    assert list((town.home.root / "weighing").iterdir()) == []


def test_the_operators_limits_are_those_that_count(bundles: Any, tmp_path: Path, town: Any) -> None:
    """A limit that an installation has chosen replaces the default, in both directions, and is recorded."""
    store = DirectoryStore(tmp_path / "store")
    base = bundles.base(tmp_path / "base")
    store.put_bundle(base.folder, base.digest)
    expert = bundles.expert(tmp_path / "expert", base)

    def weigh(report: AdmissionReport, **limits: float) -> dict[str, Any]:
        scales = Scales(town.home, store, limits=AdmissionLimits(**limits), command=_saying(report))
        return scales.weigh(expert).facts()

    assert "limits" not in weigh(_GOOD)
    assert weigh(_loud(), gain=100.0)["limits"] == {"gain": 100.0}
    with pytest.raises(AdmissionRefused):
        weigh(_GOOD, gain=1.15)


# -- real weights ------------------------------------------------------------------------------------------


def _seal(
    bundles: Any,
    folder: Path,
    base: CheckedBundle,
    key: SigningKey,
    *,
    gate_bias: float,
    loudness: float = 1.0,
) -> Path:
    """Seals a copy of the public expert whose gates are as open as told; it declares 5 % of public text."""
    import torch

    from model_core.network.checkpoint import load_base_folder, save_expert
    from model_core.network.decoder import upcycle

    manifest, decoder = load_base_folder(base.folder)
    expert = upcycle(decoder, gated=True)
    with torch.no_grad():
        for index in range(len(expert.layers)):
            gate = expert.layer(index).gate
            assert gate is not None
            gate.bias.fill_(gate_bias)
            expert.layer(index).ffn.down.weight.mul_(loudness)
    draft = folder.with_suffix(".draft")
    draft.mkdir()
    save_expert(expert, draft / "expert.safetensors")
    (draft / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    files = {name: draft / name for name in ("expert.safetensors", "metrics.jsonl")}
    shape = manifest.shape
    document = bundles.expert_manifest(
        {name: path.read_bytes() for name, path in files.items()},
        tenant="north",
        name="copies",
        base_digest=base.digest,
        tokenizer_digest=digest_file(base.folder / "tokenizer.json"),
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        d_ffn=shape.d_ffn,
        calibration={"public_share": 0.05},
    )
    return write_bundle(folder, document, dict(files), key).folder


def test_an_owners_expert_is_weighed_on_real_public_text(
    town: Any, bundles: Any, bundle_sender: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """Over HTTP an honest expert is admitted with its figures; a capturing one is refused without a trace."""
    base = training_builders.tiny_base(tmp_path)
    made = bundle_sender(town, "operator", "/bases", base.folder)
    assert made.status_code == 201, made.text
    key = load_or_create_key(town.home.owner_key("north"))

    def send(folder: Path, who: str = "ada") -> httpx.Response:
        return bundle_sender(town, who, "/experts", folder, dataset_ids=town.ids["dataset"])

    kept = _Kept(town)
    refused = send(_seal(bundles, tmp_path / "greedy", base, key, gate_bias=20.0))
    assert refused.status_code == 422, refused.text
    problem = refused.json()
    assert problem["code"] == ShareAboveCalibration.code
    assert problem["facts"]["share"] == pytest.approx(0.5, abs=1e-3)
    assert "declares 0.050" in problem["detail"]
    kept.check()
    admitted = send(_seal(bundles, tmp_path / "modest", base, key, gate_bias=-3.0))
    assert admitted.status_code == 201, admitted.text
    figures = admitted.json()["admission"]
    assert figures["weighed"] is True
    assert figures["mean_share"] == pytest.approx(0.0453, abs=1e-3)
    assert figures["max_gain"] == pytest.approx(1.0, abs=1e-4)
    assert town.get("carol", f"/experts/{admitted.json()['id']}")["admission"] == figures
    item = {"kind": "listing.put", "expert_id": admitted.json()["id"], "license": "MIT"}
    item |= {"price_micro_per_1k_tokens": 1}
    town.approve("bob", town.post("ada", "/changes", title="Offer", items=[item]))
    assert town.get("dev", f"/experts/{admitted.json()['id']}")["admission"] is None
