# SPDX-License-Identifier: Apache-2.0
"""The header reader agrees with the library on good files and refuses hostile ones."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.errors import BundleNotSafetensors
from model_core.packing.safetensors_header import MAX_HEADER_BYTES, SafetensorsHeader, read_header

_SHAPES = {"a": (2, 3), "scalar": (), "b": (4,)}


def _read(data: bytes) -> SafetensorsHeader:
    return read_header(io.BytesIO(data), len(data))


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(begin: int = 0, end: int = 4, *, dtype: object = "F32", shape: object = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [1] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_good_file(bundles: Any) -> None:
    """Names, shapes and places are read."""
    header = _read(bundles.safetensors(_SHAPES))
    assert header.shapes() == _SHAPES
    assert [entry.end - entry.begin for entry in header.tensors.values()] == [24, 4, 16]


def test_agrees_with_the_library(bundles: Any) -> None:
    """What the reference library writes is read with equal shapes, with metadata and padding."""
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    tensors = {name: np.zeros(shape, dtype="float32") for name, shape in _SHAPES.items()}
    tensors["i8"] = np.zeros((5,), dtype="int8")
    data = numpy.save(tensors, metadata={"format": "pt"})
    assert _read(data).shapes() == {**_SHAPES, "i8": (5,)}
    assert numpy.load(bundles.safetensors(_SHAPES)).keys() == _SHAPES.keys()


_ONE = {"a": _entry()}
_PAIR = json.dumps(_ONE).encode()[1:-1]
_HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "short": b"\x01\x00\x00",
    "only a length": struct.pack("<Q", 2),
    "length beyond the file": struct.pack("<Q", 1 << 40) + b"{}",
    "length of 2**64 - 1": b"\xff" * 8 + b"{}",
    "length zero": struct.pack("<Q", 0) + b"{}",
    "header above the limit": _file(b"{" + b" " * MAX_HEADER_BYTES + b"}"),
    "not an object": _file(b"[]"),
    "leading space": _file(b" {}"),
    "not JSON": _file(b"{nonsense}"),
    "not UTF-8": _file(b'{"\xff":1}'),
    "two entries of one name": _file(
        b"{" + b",".join([json.dumps(_ONE).encode()[1:-1]] * 2) + b"}", b"\0" * 4
    ),
    "deeply nested": _file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "NaN as a size": _file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
    "metadata of numbers": _file({"__metadata__": {"a": 1}}),
    "metadata a list": _file({"__metadata__": []}),
    "entry a list": _file({"a": []}),
    "field missing": _file({"a": {"dtype": "F32", "shape": [1]}}),
    "field too many": _file({"a": {**_entry(), "code": "x"}}, b"\0" * 4),
    "dtype unknown": _file({"a": _entry(dtype="F64", end=8)}, b"\0" * 8),
    "dtype a list": _file({"a": _entry(dtype=["F32"])}, b"\0" * 4),
    "shape negative": _file({"a": _entry(shape=[-1])}, b"\0" * 4),
    "shape of truths": _file({"a": _entry(shape=[True])}, b"\0" * 4),
    "shape of floats": _file({"a": _entry(shape=[1.0])}, b"\0" * 4),
    "shape too long": _file({"a": _entry(shape=[1] * 9)}, b"\0" * 4),
    "shape overflows": _file({"a": _entry(shape=[1 << 62, 4])}, b"\0" * 4),
    "offsets swapped": _file({"a": _entry(4, 0)}, b"\0" * 4),
    "offsets do not fit": _file({"a": _entry(0, 8)}, b"\0" * 8),
    "three offsets": _file({"a": {**_entry(), "data_offsets": [0, 4, 8]}}, b"\0" * 4),
    "overlap": _file({"a": _entry(0, 4), "b": _entry(0, 4)}, b"\0" * 4),
    "hole": _file({"a": _entry(0, 4), "b": _entry(8, 12)}, b"\0" * 12),
    "hole at the start": _file({"a": _entry(4, 8)}, b"\0" * 8),
    "truncated": _file(_ONE, b"\0" * 3),
    "trailing bytes": _file(_ONE, b"\0" * 5),
    "pickle": pickle.dumps({"a": [1.0]}),
    "old pickle": pickle.dumps({"a": [1.0]}, protocol=0),
}


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    return out.getvalue()


_HOSTILE["zip as torch saves"] = _zip()


@pytest.mark.parametrize("data", _HOSTILE.values(), ids=_HOSTILE.keys())
def test_hostile_files(data: bytes) -> None:
    """Each is refused with the one code."""
    with pytest.raises(BundleNotSafetensors) as caught:
        _read(data)
    assert caught.value.code == "bundle_not_safetensors"


def test_the_plain_case_passes() -> None:
    """The file that the hostile ones are variations of is accepted, so they fail for their own reason."""
    assert _read(_file(_ONE, b"\0" * 4)).shapes() == {"a": (1,)}
    assert _read(_file({"__metadata__": {"a": "b"}})).shapes() == {}


@given(st.binary(max_size=300), st.data())
def test_damage_is_refused_or_harmless(noise: bytes, data: st.DataObject) -> None:
    """Random damage to a good file raises the one error or leaves a file that still tiles exactly."""
    whole = bytearray(_file({"a": _entry(0, 4), "b": _entry(4, 12, shape=[2])}, b"\0" * 12))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[at : at + len(noise)] = noise
    else:
        del whole[at]
    try:
        header = _read(bytes(whole))
    except BundleNotSafetensors:
        return
    sizes = sum(entry.end - entry.begin for entry in header.tensors.values())
    assert 8 + header.header_bytes + sizes == len(whole)


@given(st.binary(max_size=200))
def test_random_bytes_never_crash_the_reader(noise: bytes) -> None:
    """Only the typed error leaves the reader."""
    with pytest.raises(BundleNotSafetensors):
        _read(noise)
