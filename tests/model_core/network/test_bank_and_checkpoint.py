# SPDX-License-Identifier: Apache-2.0
"""Weights in files and in the bank: mapped, apart from each other, and refused when they do not fit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensor_builders import (
    BASE,
    bank_of,
    copy_of,
    digest,
    in_bfloat16,
    prompt,
    random_decoder,
    random_expert,
    random_world,
    tiny_shape,
)

from model_core.errors import (
    BundleNotSafetensors,
    BundleWrongBase,
    BundleWrongShape,
    ExpertNotResident,
    TensorsNotFinite,
)
from model_core.network.bank import ExpertBank, forward_logits
from model_core.network.checkpoint import (
    load_base_folder,
    load_decoder,
    load_expert,
    load_expert_folder,
    save_decoder,
    save_expert,
)
from model_core.packing.forms import EXPERT_KINDS, ExpertKind, FfnForm


def test_round_trip_keeps_every_byte(tmp_path: Path) -> None:
    """Saved, mapped and saved again: the same bytes, and the same logits."""
    decoder, experts = random_world(1, 1)
    (expert,) = experts.values()
    save_decoder(decoder, tmp_path / "base.safetensors")
    save_expert(expert, tmp_path / "expert.safetensors")
    mapped = load_decoder(tmp_path / "base.safetensors", decoder.shape)
    guest = load_expert(tmp_path / "expert.safetensors", decoder.shape)
    save_decoder(mapped, tmp_path / "base2.safetensors")
    save_expert(guest, tmp_path / "expert2.safetensors")
    for name in ("base", "expert"):
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (
            tmp_path / f"{name}2.safetensors"
        ).read_bytes()
    ids = torch.tensor([prompt(1, 9)])
    with torch.no_grad():
        assert torch.equal(decoder(ids, [expert]), mapped(ids, [guest]))
    assert not any(p.requires_grad for module in (mapped, guest) for p in module.parameters())


@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_bfloat16_weights_come_back_in_bfloat16_and_routers_in_fp32(tmp_path: Path, kind: ExpertKind) -> None:
    """Matrices, the inner gate's too, keep the base's dtype in files; rows, gates and scales stay fp32."""
    decoder, experts = random_world(7, 1, kinds=(kind,))
    (name, expert), *_ = experts.items()
    in_bfloat16(decoder)
    in_bfloat16(expert)
    save_decoder(decoder, tmp_path / "base.safetensors")
    save_expert(expert, tmp_path / "expert.safetensors")
    for part, tensor in load_file(tmp_path / "expert.safetensors").items():
        if ".ffn." not in part or part.endswith(".scale"):
            assert tensor.dtype == torch.float32
        else:
            assert tensor.dtype == (torch.int8 if kind == "int8" else torch.bfloat16)
    assert load_file(tmp_path / "base.safetensors")["layers.1.ffn.gate.weight"].dtype == torch.bfloat16
    bank = ExpertBank(BASE, load_decoder(tmp_path / "base.safetensors", decoder.shape))
    bank.add(name, load_expert(tmp_path / "expert.safetensors", decoder.shape))
    logits = forward_logits(bank, prompt(7, 6), [name], 2)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, forward_logits(bank_of(decoder, experts), prompt(7, 6), [name], 2))


def test_poison_stays_in_this_process(tmp_path: Path) -> None:
    """NaN reaches every tensor of the expert, no other tensor, and not the mapped file."""
    decoder, experts = random_world(2, 2)
    bank = ExpertBank(BASE, decoder)
    before = {}
    for name, expert in experts.items():
        file = tmp_path / f"{name[7:20]}.safetensors"
        save_expert(expert, file)
        before[name] = file.read_bytes()
        bank.add(name, load_expert(file, decoder.shape))
    gone, stays = experts
    maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else gone[7:20]
    assert gone[7:20] in maps
    bank.poison(gone)
    assert bank.digests == (stays,)
    assert bank.poisoned == (gone,)
    panel = bank.panels()[0]
    column = bank.names().index(gone)
    assert panel.rows.rows_ED[column].isnan().all()
    assert all(tensor.isnan().all() for tensor in panel.ffns[column].state_dict().values())  # type: ignore[attr-defined]
    assert (tmp_path / f"{gone[7:20]}.safetensors").read_bytes() == before[gone]
    assert torch.isfinite(forward_logits(bank, prompt(2, 8), [stays], 2)).all()
    with pytest.raises(ExpertNotResident):
        forward_logits(bank, prompt(2, 8), [gone], 2)
    bank.add(gone, copy_of(experts[gone]))
    assert bank.poisoned == ()
    assert torch.isfinite(forward_logits(bank, prompt(2, 8), experts, 3)).all()


def test_adding_and_removing_touch_no_other_tensor() -> None:
    """The other experts' tensors stay at their place in memory with their bytes."""
    decoder, experts = random_world(3, 2)
    bank = bank_of(decoder, experts)
    first, second = bank.digests

    def places() -> list[tuple[int, bytes]]:
        ffn = bank.panels()[1].ffns[bank.names().index(first)]
        state = ffn.state_dict()  # type: ignore[attr-defined]
        return [(tensor.data_ptr(), tensor.numpy().tobytes()) for tensor in state.values()]

    before = places()
    bank.add(digest(77), random_expert(decoder, 77))
    assert places() == before
    bank.remove(second)
    assert places() == before
    with pytest.raises(ExpertNotResident):
        bank.remove(second)


def test_tensors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Missing, extra, misshapen, wrongly typed, NaN, infinite, not safetensors: each by its own code."""
    decoder, experts = random_world(4, 1)
    (expert,) = experts.values()
    good = tmp_path / "good.safetensors"
    save_expert(expert, good)
    name = "layers.1.ffn.up.weight"

    def refuse(kind: type[Exception], **changes: torch.Tensor | None) -> None:
        tensors = load_file(good) | {key.replace("__", "."): value for key, value in changes.items()}
        file = tmp_path / "bad.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, file)
        with pytest.raises(kind):
            load_expert(file, decoder.shape)

    weight = load_file(good)[name].clone()
    refuse(BundleWrongShape, **{name: None})
    refuse(BundleWrongShape, extra=torch.zeros(1))
    refuse(BundleWrongShape, **{name: weight[:, :-1]})
    refuse(BundleWrongShape, **{name: weight.double()})
    refuse(BundleWrongShape, **{"layers.0.router.row": torch.zeros(24, dtype=torch.bfloat16)})
    refuse(TensorsNotFinite, **{name: weight.index_fill(0, torch.tensor([0]), float("nan"))})
    refuse(TensorsNotFinite, **{name: weight.index_fill(0, torch.tensor([0]), float("inf"))})
    refuse(TensorsNotFinite, **{"layers.0.gate.scale": torch.zeros(24)})
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04N.")
    with pytest.raises(BundleNotSafetensors):
        load_expert(tmp_path / "pickle.safetensors", decoder.shape)
    with pytest.raises(BundleNotSafetensors):
        load_expert(tmp_path / "absent.safetensors", decoder.shape)
    with pytest.raises(BundleWrongShape):
        load_expert(good, tiny_shape(d_model=16))
    with pytest.raises(BundleWrongShape):
        load_expert(good, decoder.shape, form=FfnForm(d_ffn=8))
    bank = ExpertBank(BASE, decoder)
    with pytest.raises(BundleWrongShape):
        bank.add(digest(1), random_expert(random_decoder(tiny_shape(n_layers=1), 1), 1))
    rotten = copy_of(expert)
    rotten.layer(0).ffn.up.weight.data[0, 0] = float("nan")
    with pytest.raises(TensorsNotFinite):
        bank.add(digest(1), rotten)
    assert bank.digests == ()


def test_an_expert_of_another_base_is_refused(tmp_path: Path, bundles) -> None:  # type: ignore[no-untyped-def]
    """Folders written by packing load into modules; one for another base does not."""
    base = bundles.base(tmp_path / "base")
    bundles.expert(tmp_path / "expert", base)
    manifest, decoder = load_base_folder(tmp_path / "base")
    assert decoder.shape == manifest.shape
    bank = ExpertBank.open(base.digest, tmp_path / "base")
    bank.add_folder(digest(1), tmp_path / "expert")
    assert bank.digests == (digest(1),)
    with pytest.raises(BundleWrongBase):
        load_expert_folder(tmp_path / "expert", BASE, decoder.shape)


_FRESH = """
import hashlib, json, sys
import torch
from pathlib import Path
from model_core.network.bank import ExpertBank, forward_logits
from model_core.network.checkpoint import load_decoder, load_expert
from model_core.packing.manifest import ModelShape
order = json.load(sys.stdin)
torch.set_num_threads(1)
shape = ModelShape(**order["shape"])
bank = ExpertBank("sha256:" + "b" * 64, load_decoder(Path(order["base"]), shape))
for name, file in order["experts"].items():
    bank.add(name, load_expert(Path(file), shape))
logits = forward_logits(bank, order["ids"], order["experts"], order["top_k"])
print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def test_a_fresh_process_without_the_expert_computes_the_same_bits(tmp_path: Path) -> None:
    """Poisoned here, never seen there: logits equal bit for bit across processes at equal threads."""
    decoder, experts = random_world(6, 3)
    save_decoder(decoder, tmp_path / "base.safetensors")
    files = {}
    for name, expert in experts.items():
        files[name] = str(tmp_path / f"{name[7:20]}.safetensors")
        save_expert(expert, Path(files[name]))
    bank = bank_of(decoder, experts)
    gone = sorted(experts)[1]
    bank.poison(gone)
    left = {name: file for name, file in files.items() if name != gone}
    ids = prompt(6, 33)
    order = {
        "shape": decoder.shape.model_dump(),
        "base": str(tmp_path / "base.safetensors"),
        "experts": left,
        "ids": ids,
        "top_k": 2,
    }
    fresh = subprocess.run(
        [sys.executable, "-c", _FRESH],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    here = hashlib.sha256(forward_logits(bank, ids, left, 2).numpy().tobytes()).hexdigest()
    assert fresh.stdout.strip() == here
