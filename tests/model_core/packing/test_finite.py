# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity are found by their bytes, wherever they stand."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_core.errors import TensorsNotFinite
from model_core.packing.bundle import write_bundle
from model_core.packing.finite import rotten_tensors
from model_core.packing.safetensors_header import read_header

ROTTEN = st.sampled_from([math.nan, math.inf, -math.inf])


def planted(bundles: Any, dtype: str, index: int, value: float) -> io.BytesIO:
    """A file of three tensors, with a value written over one element of the second."""
    data = bytearray(bundles.safetensors({"a": (3,), "b": (2, 4), "c": ()}, dtype=dtype))
    header = read_header(io.BytesIO(data), len(data))
    whole = struct.pack("<f", value)
    piece = whole if dtype == "F32" else whole[2:]
    at = 8 + header.header_bytes + header.tensors["b"].begin + index * len(piece)
    data[at : at + len(piece)] = piece
    return io.BytesIO(data)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(dtype=st.sampled_from(["F32", "BF16"]), index=st.integers(0, 7), value=ROTTEN)
def test_one_rotten_number_is_found(bundles: Any, dtype: str, index: int, value: float) -> None:
    """A single NaN or infinity anywhere names its tensor; the largest finite number does not."""
    stream = planted(bundles, dtype, index, value)
    assert rotten_tensors(stream, read_header(stream, len(stream.getvalue()))) == ["b"]
    sound = planted(bundles, dtype, index, 3.3e38)
    assert rotten_tensors(sound, read_header(sound, len(sound.getvalue()))) == []


def test_a_bundle_with_nan_is_refused(bundles: Any, tmp_path: Path) -> None:
    """An expert with NaN in its weights is refused when it is packed and when it is checked."""
    files = bundles.expert_files()
    weights = bytearray(files["expert.safetensors"])
    weights[-4:] = struct.pack("<f", math.nan)
    files = files | {"expert.safetensors": bytes(weights)}
    with pytest.raises(TensorsNotFinite) as caught:
        write_bundle(tmp_path / "bundle", bundles.expert_manifest(files), files, bundles.owner)
    assert caught.value.facts["tensors"]
