# SPDX-License-Identifier: Apache-2.0
"""Kinds of experts in manifests and bundles: exact tensors, exact dtypes, and nothing besides."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_core.errors import BundleRefused, ManifestInvalid, PackingError, ProductError
from model_core.packing.bundle import check_fits_base, write_bundle
from model_core.packing.canonical import canonical_bytes
from model_core.packing.forms import EXPERT_KINDS, FfnForm, TensorSpec, ffn_specs
from model_core.packing.manifest import parse_expert_manifest
from model_core.packing.tensors import expert_tensors

# Of the bundle maker's tiny expert: two layers, eight wide, ten inner neurons.
_CHANGES: dict[str, dict[str, Any]] = {
    "full": {},
    "narrow": {"expert_kind": "narrow"},
    "low_rank": {"expert_kind": "low_rank", "rank": 3},
    "split": {"expert_kind": "split", "pieces": 5},
    "int8": {"expert_kind": "int8"},
}
_NUMPY = {"F32": "<f4", "F16": "<f2", "I8": "|i1"}

Tensors = dict[str, tuple[str, np.ndarray]]


def _tensors(specs: Mapping[str, TensorSpec], *, seed: int = 0) -> Tensors:
    """Random tensors of the first dtype that each spec accepts, positive where that is asked."""
    numbers = np.random.default_rng(seed)
    made: Tensors = {}
    for name, spec in specs.items():
        dtype = "I8" if spec.dtypes == {"I8"} else "F32"
        values = numbers.normal(size=spec.shape) * (20 if dtype == "I8" else 0.1)
        made[name] = (dtype, np.asarray(np.abs(values) + 0.01 if spec.positive else values))
    return made


def _file(tensors: Tensors) -> bytes:
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        body = values.astype(_NUMPY[dtype]).tobytes()
        offsets = [len(data), len(data) + len(body)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += body
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _write(bundles: Any, folder: Path, tensors: Tensors, **changes: Any) -> None:
    files = {"expert.safetensors": _file(tensors), "metrics.jsonl": b"{}\n"}
    write_bundle(folder, bundles.expert_manifest(files, **changes), files, bundles.owner)


def _good(bundles: Any, kind: str, **changes: Any) -> Tensors:
    blank = {"expert.safetensors": b"", "metrics.jsonl": b""}
    return _tensors(expert_tensors(bundles.expert_manifest(blank, **_CHANGES[kind], **changes)))


@pytest.mark.parametrize("kind", EXPERT_KINDS)
@pytest.mark.parametrize("gated", [True, False])
def test_each_kind_is_accepted_as_its_manifest_names_it(
    bundles: Any, tmp_path: Path, kind: str, gated: bool
) -> None:
    """Written and checked under its own kind; under every other kind that has other tensors, refused."""
    tensors = _good(bundles, kind, gated=gated)
    _write(bundles, tmp_path / "good", tensors, gated=gated, **_CHANGES[kind])
    for other in EXPERT_KINDS:
        same = {kind, other} <= {"full", "narrow"}
        if other != kind and not same:
            with pytest.raises(BundleRefused):
                _write(bundles, tmp_path / other, tensors, gated=gated, **_CHANGES[other])
    with pytest.raises(BundleRefused):
        _write(bundles, tmp_path / "gates", tensors, gated=not gated, **_CHANGES[kind])


def _set(name: str, dtype: str | None = None, value: float | None = None) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        old_dtype, values = tensors[name]
        values = values.copy()
        if value is not None:
            values.flat[-1] = value
        tensors[name] = (dtype or old_dtype, values)

    return change


def _drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name) and None


def _reshape(name: str, shape: tuple[int, ...]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = (tensors[name][0], np.zeros(shape))

    return change


@pytest.mark.parametrize(
    ("kind", "change", "code"),
    [
        ("full", _set("layers.0.ffn.up.weight", dtype="I8"), "bundle_wrong_shape"),
        ("full", _set("layers.1.ffn.up.weight", dtype="F16"), "bundle_wrong_shape"),
        ("full", _set("layers.1.router.row", dtype="F16"), "bundle_wrong_shape"),
        ("low_rank", _set("layers.0.ffn.up.a", dtype="I8"), "bundle_wrong_shape"),
        ("low_rank", _set("layers.1.ffn.down.b", dtype="F16"), "bundle_wrong_shape"),
        ("low_rank", _reshape("layers.1.ffn.down.b", (8, 2)), "bundle_wrong_shape"),
        ("low_rank", _reshape("layers.0.ffn.gate.a", (4, 8)), "bundle_wrong_shape"),
        ("split", _drop("layers.1.ffn.pieces.4.up.weight"), "bundle_wrong_shape"),
        ("split", _reshape("layers.0.ffn.pieces.0.up.weight", (3, 8)), "bundle_wrong_shape"),
        ("int8", _drop("layers.0.ffn.down.scale"), "bundle_wrong_shape"),
        ("int8", _set("layers.0.ffn.down.weight", dtype="F32"), "bundle_wrong_shape"),
        ("int8", _set("layers.0.ffn.down.scale", dtype="F16"), "bundle_wrong_shape"),
        ("int8", _set("layers.0.router.row", dtype="I8"), "bundle_wrong_shape"),
        ("int8", _reshape("layers.0.ffn.gate.scale", (8,)), "bundle_wrong_shape"),
        ("int8", _set("layers.1.ffn.gate.scale", value=0.0), "tensors_out_of_range"),
        ("int8", _set("layers.1.ffn.up.scale", value=-1.0), "tensors_out_of_range"),
        ("int8", _set("layers.1.ffn.up.scale", value=float("nan")), "tensors_not_finite"),
        ("int8", _set("layers.1.ffn.up.scale", value=float("inf")), "tensors_not_finite"),
    ],
)
def test_tensors_of_another_form_are_refused(
    bundles: Any, tmp_path: Path, kind: str, change: Callable[[Tensors], None], code: str
) -> None:
    """One tensor of a wrong dtype, shape or value is enough, and the code says which it was."""
    tensors = _good(bundles, kind)
    change(tensors)
    with pytest.raises(ProductError) as caught:
        _write(bundles, tmp_path / "bad", tensors, **_CHANGES[kind])
    assert caught.value.code == code


@pytest.mark.parametrize(
    "changes",
    [
        {"expert_kind": "low_rank"},
        {"expert_kind": "low_rank", "rank": 0},
        {"expert_kind": "low_rank", "rank": 9},
        {"rank": 2},
        {"expert_kind": "split"},
        {"expert_kind": "split", "pieces": 3},
        {"expert_kind": "int8", "pieces": 2},
        {"expert_kind": "fp4"},
    ],
)
def test_manifests_of_impossible_forms_are_refused(bundles: Any, changes: dict[str, Any]) -> None:
    """A rank or pieces that the kind lacks or does not have, or that the sizes do not allow."""
    files = {"expert.safetensors": b"", "metrics.jsonl": b""}
    fields = json.loads(bundles.expert_manifest(files).to_bytes()) | changes
    with pytest.raises(ManifestInvalid):
        parse_expert_manifest(canonical_bytes(fields))


def test_manifests_of_before_there_were_kinds_are_full_and_gated(bundles: Any) -> None:
    """Without the fields that came later an expert is what every expert was."""
    files = {"expert.safetensors": b"", "metrics.jsonl": b""}
    fields = json.loads(bundles.expert_manifest(files).to_bytes())
    for name in ("rank", "pieces", "gated", "expert_kind"):
        del fields[name]
    old = parse_expert_manifest(canonical_bytes(fields))
    assert old.form == FfnForm(d_ffn=10)
    assert expert_tensors(old) == expert_tensors(bundles.expert_manifest(files))


def test_a_form_must_fit_the_public_networks(bundles: Any, tmp_path: Path) -> None:
    """Low-rank needs the public width; narrow at most that; a full one may have any."""
    base = bundles.base(tmp_path / "base")  # twelve inner neurons
    for number, (changes, fits) in enumerate(
        (
            ({"expert_kind": "low_rank", "rank": 2}, False),
            ({"expert_kind": "low_rank", "rank": 2, "d_ffn": 12}, True),
            ({"expert_kind": "narrow", "d_ffn": 12}, True),
            ({"expert_kind": "narrow", "d_ffn": 13}, False),
            ({"d_ffn": 13}, True),
        )
    ):
        expert = bundles.expert(tmp_path / str(number), base, **changes)
        if fits:
            check_fits_base(expert.manifest, base.manifest, base.digest)
        else:
            with pytest.raises(PackingError):
                check_fits_base(expert.manifest, base.manifest, base.digest)


def test_numbers_of_every_kind_add_up() -> None:
    """Split and int8 hold as many weights as full; low-rank holds r (in + out) per matrix."""
    d_model, d_ffn = 8, 10

    def count(form: FfnForm, suffix: str = "") -> int:
        specs = ffn_specs(form, d_model)
        return sum(int(np.prod(spec.shape)) for name, spec in specs.items() if name.endswith(suffix))

    whole = 3 * d_model * d_ffn
    assert count(FfnForm(d_ffn=d_ffn)) == whole
    assert count(FfnForm(kind="split", d_ffn=d_ffn, pieces=5)) == whole
    assert count(FfnForm(kind="int8", d_ffn=d_ffn), ".weight") == whole
    assert count(FfnForm(kind="int8", d_ffn=d_ffn), ".scale") == 2 * d_ffn + d_model
    assert count(FfnForm(kind="low_rank", d_ffn=d_ffn, rank=3)) == 3 * 3 * (d_model + d_ffn)
