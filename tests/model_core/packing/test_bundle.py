# SPDX-License-Identifier: Apache-2.0
"""Law 11, digest before load: what is not exactly the sealed bundle is refused, and nothing is loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_core import errors
from model_core.packing.bundle import (
    BundleLimits,
    check_bundle,
    check_fits_base,
    countersign_bundle,
    write_bundle,
)
from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.seal import make_seal, parse_seal
from model_core.packing.tensors import base_tensor_shapes, expert_tensor_shapes


class _Marker:
    """Unpickling this writes a file, so that loading cannot go unnoticed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def _bomb(folder: Path) -> bytes:
    return pickle.dumps(_Marker(folder / "exploded"))


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def _swap_weights(folder: Path, data: bytes, bundles: Any) -> None:
    """Puts other bytes in place of the weights and seals them truthfully, as a hostile owner would."""
    (folder / "expert.safetensors").write_bytes(data)
    fields = json.loads((folder / "manifest.json").read_bytes())
    fields["files"]["expert.safetensors"] = digest_bytes(data)
    manifest_bytes = canonical_bytes(fields)
    (folder / "manifest.json").write_bytes(manifest_bytes)
    seal = make_seal(digest_bytes(manifest_bytes), fields["files"], bundles.owner)
    (folder / "seal.json").write_bytes(seal.to_bytes())


def _name_file(folder: Path, name: str, bundles: Any) -> None:
    """Lets the manifest name one more file, sealed truthfully."""
    fields = json.loads((folder / "manifest.json").read_bytes())
    fields["files"][name] = digest_bytes(b"{}")
    manifest_bytes = canonical_bytes(fields)
    (folder / "manifest.json").write_bytes(manifest_bytes)
    seal = make_seal(digest_bytes(manifest_bytes), fields["files"], bundles.owner)
    (folder / "seal.json").write_bytes(seal.to_bytes())


def _link(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "outside")
    (folder / name).symlink_to(folder.parent / "outside")


def _shapes(bundles: Any, **changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes = expert_tensor_shapes(bundles.expert_manifest({"expert.safetensors": b"", "metrics.jsonl": b""}))
    for name, shape in changes.items():
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = shape
    return shapes


_Attack = Callable[[Path, Any], object]
_ROW = "layers.1.router.row"

# name → (what is done to a good bundle, the code of the refusal)
_ATTACKS: dict[str, tuple[_Attack, str]] = {
    "weights replaced by a pickle": (
        lambda f, b: (f / "expert.safetensors").write_bytes(_bomb(f.parent)),
        "bundle_corrupt",
    ),
    "a pickle sealed as weights": (
        lambda f, b: _swap_weights(f, _bomb(f.parent), b),
        "bundle_not_safetensors",
    ),
    "a pickle beside the weights": (
        lambda f, b: (f / "model.pkl").write_bytes(_bomb(f.parent)),
        "bundle_extra_file",
    ),
    "a pickle named by the manifest": (lambda f, b: _name_file(f, "model.pkl", b), "manifest_invalid"),
    "manifest replaced by a pickle": (
        lambda f, b: (f / "manifest.json").write_bytes(_bomb(f.parent)),
        "manifest_invalid",
    ),
    "truncated": (lambda f, b: os.truncate(f / "expert.safetensors", 500), "bundle_corrupt"),
    "truncated and sealed": (
        lambda f, b: _swap_weights(f, (f / "expert.safetensors").read_bytes()[:-1], b),
        "bundle_not_safetensors",
    ),
    "longer and sealed": (
        lambda f, b: _swap_weights(f, (f / "expert.safetensors").read_bytes() + b"\0", b),
        "bundle_not_safetensors",
    ),
    "a flipped bit of a weight": (lambda f, b: _flip(f / "expert.safetensors", -3), "bundle_corrupt"),
    "a flipped bit of the header": (lambda f, b: _flip(f / "expert.safetensors", 12), "bundle_corrupt"),
    "a flipped bit of the metrics": (lambda f, b: _flip(f / "metrics.jsonl", 3), "bundle_corrupt"),
    "a flipped digit of the signature": (lambda f, b: _flip(f / "seal.json", -5), "signature_invalid"),
    "an extra tensor": (
        lambda f, b: _swap_weights(f, b.safetensors(_shapes(b, backdoor=(3,))), b),
        "bundle_wrong_shape",
    ),
    "a missing tensor": (
        lambda f, b: _swap_weights(f, b.safetensors(_shapes(b, **{_ROW: None})), b),
        "bundle_wrong_shape",
    ),
    "a wider tensor": (
        lambda f, b: _swap_weights(f, b.safetensors(_shapes(b, **{_ROW: (9,)})), b),
        "bundle_wrong_shape",
    ),
    "a tensor of other rank": (
        lambda f, b: _swap_weights(f, b.safetensors(_shapes(b, **{_ROW: (1, 8)})), b),
        "bundle_wrong_shape",
    ),
    "a rounded router": (
        lambda f, b: _swap_weights(f, b.safetensors(_shapes(b), dtype="BF16"), b),
        "bundle_wrong_shape",
    ),
    "traversal in a file name": (lambda f, b: _name_file(f, "../outside.json", b), "manifest_invalid"),
    "an absolute file name": (lambda f, b: _name_file(f, "/etc/passwd", b), "manifest_invalid"),
    "weights a link": (lambda f, b: _link(f, "expert.safetensors"), "bundle_unsafe_path"),
    "manifest a link": (lambda f, b: _link(f, "manifest.json"), "bundle_unsafe_path"),
    "seal a link": (lambda f, b: _link(f, "seal.json"), "bundle_unsafe_path"),
    "a folder inside": (lambda f, b: (f / "more").mkdir(), "bundle_unsafe_path"),
    "a pipe inside": (lambda f, b: os.mkfifo(f / "pipe"), "bundle_unsafe_path"),
    "an extra file": (lambda f, b: (f / "notes.json").write_bytes(b"{}"), "bundle_extra_file"),
    "a hidden extra file": (lambda f, b: (f / ".hidden").write_bytes(b""), "bundle_extra_file"),
    "very many files": (
        lambda f, b: [(f / f"{n}.json").touch() for n in range(200)],
        "bundle_extra_file",
    ),
    "weights missing": (lambda f, b: (f / "expert.safetensors").unlink(), "bundle_missing_file"),
    "manifest missing": (lambda f, b: (f / "manifest.json").unlink(), "bundle_missing_file"),
    "seal missing": (lambda f, b: (f / "seal.json").unlink(), "seal_missing"),
    "the folder missing": (lambda f, b: shutil.rmtree(f), "bundle_missing_file"),
    "a huge manifest": (
        lambda f, b: (f / "manifest.json").write_bytes(b" " * (2 << 20)),
        "bundle_too_large",
    ),
    "a named file that is not there": (lambda f, b: _name_file(f, "more.json", b), "bundle_missing_file"),
}


@pytest.mark.parametrize(("attack", "code"), _ATTACKS.values(), ids=_ATTACKS.keys())
def test_law_11_digest_before_load(bundles: Any, tmp_path: Path, attack: _Attack, code: str) -> None:
    """Each manipulation of a good bundle is refused with its own code, and no pickle is ever run."""
    expert = bundles.expert(tmp_path / "bundle")
    attack(expert.folder, bundles)
    with pytest.raises(errors.PackingError) as caught:
        check_bundle(expert.folder)
    assert caught.value.code == code
    assert caught.value.sentence
    assert str(tmp_path) not in caught.value.sentence
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_is_live(tmp_path: Path) -> None:
    """The pickle of these tests does leave a mark when it is loaded, so its absence means something."""
    pickle.loads(_bomb(tmp_path))  # noqa: S301  (its own bytes)
    assert (tmp_path / "exploded").exists()


def test_a_good_bundle_passes(bundles: Any, tmp_path: Path) -> None:
    """What the attacks start from is accepted for serving, with the digest of its manifest's bytes."""
    base = bundles.base(tmp_path / "base")
    expert = bundles.expert(tmp_path / "expert", base)
    for made in (base, expert):
        checked = check_bundle(made.folder, expect_digest=made.digest, trusted=bundles.trusted())
        assert checked == made
        assert checked.digest == digest_bytes((made.folder / "manifest.json").read_bytes())
        assert checked.weights_path.is_file()
    check_fits_base(expert.manifest, base.manifest, base.digest)


def test_another_digest_than_expected(bundles: Any, tmp_path: Path) -> None:
    """A good bundle in place of another good one is refused."""
    expert = bundles.expert(tmp_path / "bundle")
    with pytest.raises(errors.DigestMismatch):
        check_bundle(expert.folder, expect_digest=digest_bytes(b"other"))


def test_a_linked_folder(bundles: Any, tmp_path: Path) -> None:
    """A link in place of the folder is refused."""
    expert = bundles.expert(tmp_path / "bundle")
    (tmp_path / "link").symlink_to(expert.folder)
    with pytest.raises(errors.BundleUnsafePath):
        check_bundle(tmp_path / "link")


def test_limits(bundles: Any, tmp_path: Path) -> None:
    """Files above the limit of their kind are refused before they are read."""
    expert = bundles.expert(tmp_path / "bundle")
    for limits in (BundleLimits(weights_bytes=100), BundleLimits(side_file_bytes=3)):
        with pytest.raises(errors.BundleTooLarge):
            check_bundle(expert.folder, limits=limits)


def test_not_countersigned_is_not_served(bundles: Any, tmp_path: Path) -> None:
    """The owner's seal alone is a bundle, but not one to serve."""
    expert = bundles.expert(tmp_path / "bundle", signed=False)
    check_bundle(expert.folder)
    with pytest.raises(errors.SealMissing):
        check_bundle(expert.folder, trusted=bundles.trusted())
    countersign_bundle(expert.folder, bundles.admission)
    check_bundle(expert.folder, trusted=bundles.trusted())


def test_countersigning_refuses_a_bad_bundle(bundles: Any, tmp_path: Path) -> None:
    """Admission signs nothing that does not pass, and leaves the seal as it was."""
    expert = bundles.expert(tmp_path / "bundle", signed=False)
    _flip(expert.folder / "expert.safetensors", -3)
    with pytest.raises(errors.BundleCorrupt):
        countersign_bundle(expert.folder, bundles.admission)
    assert len(parse_seal((expert.folder / "seal.json").read_bytes()).signatures) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "change",
    [
        {"base_digest": "sha256:" + "1" * 64},
        {"tokenizer_digest": "sha256:" + "1" * 64},
        {"n_layers": 3},
        {"d_model": 16},
    ],
)
def test_an_expert_of_another_base(bundles: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    """Base digest, tokenizer, depth and width must all fit; the refusal names which did not."""
    base = bundles.base(tmp_path / "base")
    expert = bundles.expert(tmp_path / "expert", base)
    with pytest.raises(errors.BundleWrongBase) as caught:
        check_fits_base(expert.manifest.model_copy(update=change), base.manifest, base.digest)
    assert caught.value.facts["fields"] == list(change)


def test_half_precision_weights(bundles: Any, tmp_path: Path) -> None:
    """A base may be stored in bfloat16 throughout."""
    files = bundles.base_files()
    files["base.safetensors"] = bundles.safetensors(
        base_tensor_shapes(bundles.base_manifest(files)), dtype="BF16"
    )
    write_bundle(tmp_path / "base", bundles.base_manifest(files), files, bundles.platform)


def test_writing_from_files(bundles: Any, tmp_path: Path) -> None:
    """Paths and bytes write the same bundle."""
    files = bundles.expert_files()
    (tmp_path / "w").write_bytes(files["expert.safetensors"])
    manifest = bundles.expert_manifest(files)
    one = write_bundle(tmp_path / "one", manifest, files, bundles.owner)
    mixed = files | {"expert.safetensors": tmp_path / "w"}
    two = write_bundle(tmp_path / "deep" / "two", manifest, mixed, bundles.owner)
    assert one.digest == two.digest == manifest.digest
    assert one.seal == two.seal


def test_writing_is_checked(bundles: Any, tmp_path: Path) -> None:
    """Wrong digests, names, folders and links are refused while writing."""
    files = bundles.expert_files()
    manifest = bundles.expert_manifest(files)
    (tmp_path / "w").write_bytes(files["metrics.jsonl"])
    (tmp_path / "link").symlink_to(tmp_path / "w")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    cases: list[tuple[str, dict[str, Any], type[errors.PackingError]]] = [
        ("a", files | {"metrics.jsonl": b"{}"}, errors.BundleCorrupt),
        ("b", files | {"more.json": b"{}"}, errors.BundleExtraFile),
        ("c", {"metrics.jsonl": files["metrics.jsonl"]}, errors.BundleMissingFile),
        ("d", files | {"metrics.jsonl": tmp_path / "link"}, errors.BundleUnsafePath),
        ("full", files, errors.BundleExtraFile),
    ]
    for folder, given, refusal in cases:
        with pytest.raises(refusal):
            write_bundle(tmp_path / folder, manifest, given, bundles.owner)


def test_checking_loads_no_tensor_library(bundles: Any, tmp_path: Path) -> None:
    """A fresh process checks a bundle without torch, safetensors or pickle being asked for."""
    expert = bundles.expert(tmp_path / "bundle")
    program = (
        "import sys, pathlib; import model_core.packing.store; "
        "from model_core.packing.bundle import check_bundle; "
        "check_bundle(pathlib.Path(sys.argv[1])); "
        "print(sorted({'torch', 'safetensors', 'tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(expert.folder)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(errors.__file__).parents[1]), "PATH": os.environ["PATH"]},
    )
    assert done.stdout.strip() == "[]"
