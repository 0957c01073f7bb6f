# SPDX-License-Identifier: Apache-2.0
"""Packing slips: round trips, unknown fields, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core import errors
from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.manifest import (
    MAX_MANIFEST_BYTES,
    ExpertManifest,
    parse_base_manifest,
    parse_expert_manifest,
    parse_manifest,
)
from model_core.packing.tensors import base_tensor_shapes, expert_tensor_shapes

_FILES = {"expert.safetensors": b"x", "metrics.jsonl": b"y"}


def _expert_fields(bundles: Any) -> dict[str, Any]:
    fields = json.loads(bundles.expert_manifest(_FILES).to_bytes())
    assert isinstance(fields, dict)
    return fields


def test_round_trip(bundles: Any) -> None:
    """Both kinds read back equal from their bytes and have the digest of those bytes."""
    expert = bundles.expert_manifest(_FILES)
    base = bundles.base_manifest(bundles.base_files())
    assert parse_manifest(expert.to_bytes()) == parse_expert_manifest(expert.to_bytes()) == expert
    assert parse_manifest(base.to_bytes()) == parse_base_manifest(base.to_bytes()) == base
    assert expert.digest == digest_bytes(expert.to_bytes())


def test_unknown_fields_are_ignored_but_digested(bundles: Any) -> None:
    """A later release's field changes the bytes, not what today's reader sees."""
    fields = _expert_fields(bundles)
    data = canonical_bytes(fields | {"privacy_report": {"epsilon": 3}, "schema_version": 2})
    later = parse_expert_manifest(data)
    assert later.name == "letters"
    assert later.schema_version == 2
    assert later.digest != digest_bytes(data)


def test_the_first_format_stays_readable() -> None:
    """A manifest as the first release wrote it is read under its old digest."""
    data = (Path(__file__).parent / "fixtures" / "expert-manifest-1.json").read_bytes()
    manifest = parse_expert_manifest(data)
    assert manifest.name == "letters"
    assert digest_bytes(data) == "sha256:bd6634417354fd17bf0d5d18bcdb7254221e57c7c751714767ad2f471dd125b4"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../up"),
        ("tenant", "Acme"),
        ("tenant", None),
        ("base_digest", "sha256:12"),
        ("tokenizer_digest", ""),
        ("expert_kind", "lowrank"),
        ("d_ffn", 0),
        ("d_model", "8"),
        ("n_layers", 10_000),
        ("recipe", {"steps": [1]}),
        ("recipe", None),
        ("seeds", {"data": "one"}),
        ("data_card", {}),
        ("metrics", {"loss": "low"}),
        ("created_at_us", -1),
        ("threads", 0),
    ],
)
def test_wrong_fields_are_named(bundles: Any, field: str, value: object) -> None:
    """Each impossible field is refused and named, without echoing long values."""
    fields = _expert_fields(bundles) | {field: value}
    with pytest.raises(errors.ManifestInvalid) as caught:
        parse_expert_manifest(canonical_bytes(fields))
    assert any(name.split(".")[0] == field for name in caught.value.facts["fields"])


@pytest.mark.parametrize("field", ["name", "tenant", "base_digest", "files", "data_card", "threads"])
def test_missing_fields_are_named(bundles: Any, field: str) -> None:
    """Each missing field is refused and named."""
    fields = _expert_fields(bundles)
    del fields[field]
    with pytest.raises(errors.ManifestInvalid) as caught:
        parse_expert_manifest(canonical_bytes(fields))
    assert field in caught.value.facts["fields"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "/etc/passwd",
        "a/b.json",
        "..",
        "manifest.json",
        "seal.json",
        "x.pkl",
        "other.safetensors",
    ],
)
def test_files_that_no_bundle_has(bundles: Any, name: str) -> None:
    """Traversal, other formats and names that would describe themselves are refused."""
    fields = _expert_fields(bundles)
    fields["files"][name] = digest_bytes(b"")
    with pytest.raises(errors.ManifestInvalid):
        parse_expert_manifest(canonical_bytes(fields))


def test_required_files(bundles: Any) -> None:
    """Weights cannot be left out; a later release's side file may be named."""
    fields = _expert_fields(bundles)
    fields["files"]["privacy_report.json"] = digest_bytes(b"{}")
    assert "privacy_report.json" in parse_expert_manifest(canonical_bytes(fields)).files
    del fields["files"]["expert.safetensors"]
    with pytest.raises(errors.ManifestInvalid, match=r"expert\.safetensors missing"):
        parse_expert_manifest(canonical_bytes(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95",
        b"[]",
        b"{}",
        b'{"kind":"other"}',
        b'{ "kind":"base"}',
        b"0" * (MAX_MANIFEST_BYTES + 1),
        b"[" * 100_000,
    ],
)
def test_what_is_no_manifest(data: bytes) -> None:
    """Pickles, other JSON, other spellings and huge inputs are refused with the same typed error."""
    with pytest.raises(errors.ManifestInvalid):
        parse_manifest(data)


@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_reader(data: bytes) -> None:
    """Only the typed error leaves the reader."""
    with pytest.raises(errors.ManifestInvalid):
        parse_manifest(data)


def test_base_digests_must_agree(bundles: Any) -> None:
    """A base whose weights digest differs from its file's is refused."""
    fields = json.loads(bundles.base_manifest(bundles.base_files()).to_bytes())
    fields["weights_digest"] = digest_bytes(b"else")
    with pytest.raises(errors.ManifestInvalid, match=r"base\.safetensors differs"):
        parse_base_manifest(canonical_bytes(fields))


@pytest.mark.parametrize(
    "change",
    [{"n_heads": 3}, {"n_kv_heads": 3, "n_heads": 4}, {"norm_eps": 0}, {"family": "x"}, {"vocab_size": 0}],
)
def test_impossible_shapes(bundles: Any, change: dict[str, Any]) -> None:
    """Heads must divide the width, and every size be positive."""
    fields = json.loads(bundles.base_manifest(bundles.base_files()).to_bytes())
    fields["shape"] |= change
    with pytest.raises(errors.ManifestInvalid):
        parse_base_manifest(canonical_bytes(fields))


def test_expert_tensors(bundles: Any) -> None:
    """The tensors of an expert are exactly those of the format."""
    shapes = expert_tensor_shapes(bundles.expert_manifest(_FILES))
    assert len(shapes) == 2 * 9
    assert shapes["layers.0.ffn.gate.weight"] == shapes["layers.0.ffn.up.weight"] == (10, 8)
    assert shapes["layers.1.ffn.down.weight"] == (8, 10)
    assert shapes["layers.1.router.row"] == (8,)
    assert shapes["layers.1.router.bias"] == shapes["layers.0.gate.bias"] == ()
    assert {shapes[f"layers.0.gate.{part}"] for part in ("weight", "mean", "scale")} == {(8,)}


def test_base_tensors(bundles: Any) -> None:
    """The tensors of a base follow from its shape; tied embeddings have no output layer."""
    manifest = bundles.base_manifest(bundles.base_files())
    shapes = base_tensor_shapes(manifest)
    assert len(shapes) == 3 + 2 * 12
    assert shapes["layers.0.attn.k.weight"] == (4, 8)
    assert shapes["layers.0.attn.k_norm.weight"] == (4,)
    assert shapes["layers.1.attn.q_norm.weight"] == (8,)
    assert shapes["lm_head.weight"] == shapes["embed.weight"] == (32, 8)
    tied = manifest.model_copy(update={"shape": manifest.shape.model_copy(update={"tie_embeddings": True})})
    assert base_tensor_shapes(tied).keys() == shapes.keys() - {"lm_head.weight"}


def test_types_survive(bundles: Any) -> None:
    """Recipe values keep their kinds: true stays a truth value, 3 a count, 0.001 a number."""
    manifest: ExpertManifest = parse_expert_manifest(bundles.expert_manifest(_FILES).to_bytes())
    assert manifest.recipe == {"steps": 3, "lr": 1e-3, "schedule": "cosine", "gated": True}
    assert manifest.recipe["gated"] is True
    assert type(manifest.recipe["steps"]) is int
