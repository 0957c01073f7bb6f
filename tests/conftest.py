# SPDX-License-Identifier: Apache-2.0
"""Fixtures that tests of several floors share: tiny bundles, written without any tensor library."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from model_core.packing.bundle import CheckedBundle, countersign_bundle, write_bundle
from model_core.packing.canonical import digest_bytes, merkle_root
from model_core.packing.keys import generate_key
from model_core.packing.manifest import (
    BaseManifest,
    DataCard,
    ExpertManifest,
    ModelShape,
    base_tensor_shapes,
    expert_tensor_shapes,
)
from model_core.packing.seal import TrustedKeys

_ZERO = "sha256:" + "0" * 64


class BundleMaker:
    """Makes tiny sealed bundles; the numbers in them are random but finite, and repeat by seed."""

    def __init__(self) -> None:
        self.owner = generate_key()
        self.platform = generate_key()
        self.admission = generate_key()

    def trusted(self, *tenants: str) -> TrustedKeys:
        """Trust in this maker's keys for the platform and the given tenants (acme if none is given)."""
        owners = {tenant: frozenset({self.owner.public_key}) for tenant in tenants or ("acme",)}
        owners["platform"] = frozenset({self.platform.public_key})
        return TrustedKeys(owners=owners, admission=frozenset({self.admission.public_key}))

    def safetensors(
        self, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, dtype: str = "F32"
    ) -> bytes:
        """The bytes of a well-formed safetensors file with small random values."""
        numbers = random.Random(seed)
        header: dict[str, Any] = {}
        data = bytearray()
        for name, shape in shapes.items():
            begin = len(data)
            for _ in range(math.prod(shape)):
                data += struct.pack("<f", numbers.gauss(0.0, 0.02))[2 if dtype == "BF16" else 0 :]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, len(data)]}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(data)

    def base_manifest(self, files: Mapping[str, bytes], **changes: Any) -> BaseManifest:
        """A manifest of a two-layer base that names the given files."""
        digests = {name: digest_bytes(data) for name, data in files.items()}
        fields: dict[str, Any] = {
            "name": "tiny",
            "shape": self.shape(),
            "tokenizer_digest": digests.get("tokenizer.json", _ZERO),
            "weights_digest": digests.get("base.safetensors", _ZERO),
            "calibration_digest": digests.get("calibration.jsonl"),
            "license": "CC0-1.0",
            "trained_on": "random numbers",
            "created_at_us": 1_700_000_000_000_000,
            "code_version": "0.1.0",
            "files": digests,
        }
        return BaseManifest(**(fields | changes))

    def shape(self) -> ModelShape:
        """Two layers, eight wide."""
        return ModelShape(
            n_layers=2,
            d_model=8,
            n_heads=2,
            n_kv_heads=1,
            d_ffn=12,
            vocab_size=32,
            max_positions=64,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        )

    def base_files(self, *, seed: int = 0) -> dict[str, bytes]:
        """The files of a tiny base, without manifest and seal."""
        blank = self.base_manifest({"base.safetensors": b"", "tokenizer.json": b"", "calibration.jsonl": b""})
        return {
            "base.safetensors": self.safetensors(base_tensor_shapes(blank), seed=seed),
            "tokenizer.json": b'{"model":{}}',
            "calibration.jsonl": b'{"text":"hello"}\n',
        }

    def base(self, folder: Path, *, seed: int = 0, signed: bool = True) -> CheckedBundle:
        """A sealed and, unless told otherwise, countersigned base."""
        files = self.base_files(seed=seed)
        checked = write_bundle(folder, self.base_manifest(files), dict(files), self.platform)
        return countersign_bundle(folder, self.admission) if signed else checked

    def expert_manifest(self, files: Mapping[str, bytes], **changes: Any) -> ExpertManifest:
        """A manifest of acme's expert for the tiny shape that names the given files."""
        fields: dict[str, Any] = {
            "name": "letters",
            "tenant": "acme",
            "base_digest": _ZERO,
            "tokenizer_digest": _ZERO,
            "d_ffn": 10,
            "n_layers": 2,
            "d_model": 8,
            "recipe": {"steps": 3, "lr": 1e-3, "schedule": "cosine", "gated": True},
            "seeds": {"data": 1},
            "data_card": DataCard(
                documents=2,
                text_bytes=20,
                tokens=9,
                languages=("en",),
                license="MIT",
                merkle_root=merkle_root([b"one", b"two"]),
                description="letters",
            ),
            "metrics": {"bits_per_byte": 1.5},
            "calibration": {"bias": -0.25},
            "files": {name: digest_bytes(data) for name, data in files.items()},
            "created_at_us": 1_700_000_000_000_000,
            "code_version": "0.1.0",
            "torch_version": "2.12.0",
            "threads": 1,
        }
        return ExpertManifest(**(fields | changes))

    def expert_files(self, *, seed: int = 0, **changes: Any) -> dict[str, bytes]:
        """The files of a tiny expert, without manifest and seal."""
        blank = self.expert_manifest({"expert.safetensors": b"", "metrics.jsonl": b""}, **changes)
        return {
            "expert.safetensors": self.safetensors(expert_tensor_shapes(blank), seed=seed),
            "metrics.jsonl": b'{"loss":1.5,"step":3}\n',
        }

    def expert(
        self,
        folder: Path,
        base: CheckedBundle | None = None,
        *,
        seed: int = 0,
        signed: bool = True,
        **changes: Any,
    ) -> CheckedBundle:
        """A sealed and, unless told otherwise, countersigned expert, for the given base if there is one."""
        if base is not None and isinstance(base.manifest, BaseManifest):
            fits = {"base_digest": base.digest, "tokenizer_digest": base.manifest.tokenizer_digest}
            changes = fits | changes
        files = self.expert_files(seed=seed, **changes)
        checked = write_bundle(folder, self.expert_manifest(files, **changes), dict(files), self.owner)
        return countersign_bundle(folder, self.admission) if signed else checked


@pytest.fixture
def bundles() -> BundleMaker:
    """A maker of tiny bundles with keys of its own."""
    return BundleMaker()
