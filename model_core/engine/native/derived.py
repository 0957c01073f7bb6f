# SPDX-License-Identifier: Apache-2.0
"""Packed weights in files: made once per machine, mapped by every process of it.

Packing a base or an expert costs a copy of it. So the result is written once into a file of the machine,
named by the bundle's digest, the version of the layout and the dtype, and every process maps that file:
their clean pages are one copy in memory. Mappings are copy-on-write, so what one process writes into its
weights (NaN, to prove that nobody reads them) reaches neither the file nor another process.

A file is made under a temporary name and renamed. On opening its size, the digest of its header and a
fingerprint of the weights it was made from are checked; what does not fit is made anew. The header holds a
digest of the data too. It is checked where the machine was started since the file was made: writing does not
wait for the disk, so after a power cut a whole name may stand for half a file. Where files cannot be kept,
weights are packed in memory, and the answer says why. This module does not know who may use an expert.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from model_core.engine.native.footprint import give_back_freed
from model_core.engine.native.library import Library
from model_core.engine.native.locking import locked, not_ours
from model_core.engine.native.panels import panel_kind
from model_core.engine.native.trees import Layout, NotATree, describe, restore
from model_core.engine.native.weights import PackedBase, PackedExpert, pack_base, pack_expert
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.pacing import pieces_of, read_pieces

# Goes up with every change of how panels or descriptions look; files of other versions are not read.
LAYOUT_VERSION = 3

_MAGIC = b"experts\x01"
_PREFIX = struct.Struct("<8sQ32s")  # magic, length of the header, its digest
_PAGE_BYTES = 4096
_LOCK_PATIENCE_S = 300.0
# Linux 5.14; the mapping's pages are entered for reading, which copies none of them.
_MADV_POPULATE_READ = 22

_Weights = TypeVar("_Weights")

# (name, tensor); files know no mappings.
NamedTensors = tuple[tuple[str, Tensor], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived(Generic[_Weights]):
    """Packed weights and where they are.

    Attributes:
        weights: the packed base or expert; the mapping ends with the last of its tensors.
        path: the mapped file; None where the weights are in this process's own memory.
        made_s: how long packing and writing took; 0 where the file was there.
        reason: why there is no file, a sentence for operators; None where there is one.
    """

    weights: _Weights
    path: Path | None
    made_s: float
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DerivedFile:
    """A file of tensors that another process can open.

    Attributes:
        path: where it is.
        name: its name, which its header repeats.
        fingerprint: of the weights that it was made from.
    """

    path: Path
    name: str
    fingerprint: str


class DerivedFolder:
    """The derived files of one machine.

    Args:
        folder: where they are; made if it is missing. It must belong to this user, and no other may write
            there.
        library: keeps exponents of packed weights in few bits where that saves something; None keeps all
            weights whole.
    """

    def __init__(self, folder: Path, library: Library | None = None) -> None:
        self.folder, self._library = folder, library

    def base(self, digest: str, decoder: Decoder) -> Derived[PackedBase]:
        """A base's packed weights, mapped; its file is made if it is missing.

        Args:
            digest: of the base's bundle, verified.
            decoder: the base; read only where the file must be made, but for a few numbers per tensor.
        """
        name = self._name("base", digest, decoder.embed.weight.dtype)
        return self._derive(name, decoder.state_dict(), lambda: pack_base(decoder, self._library))

    def expert(self, digest: str, expert: Expert) -> Derived[PackedExpert]:
        """An expert's packed weights, mapped; its file is made if it is missing.

        Args:
            digest: of the expert's bundle, verified.
            expert: the expert; read only where the file must be made, but for a few numbers per tensor.
        """
        name = self._name("expert", digest, expert.dtype or torch.int8)
        return self._derive(name, expert.state_dict(), lambda: pack_expert(expert, self._library))

    def tensors(
        self, what: str, digest: str, source: Mapping[str, Tensor], make: Callable[[], NamedTensors]
    ) -> DerivedFile | None:
        """The file of other tensors that are made from a bundle's, for processes that open it themselves.

        Args:
            what: names them among all that is made from the bundle; letters and digits only.
            digest: of the bundle, verified.
            source: the bundle's tensors; a few numbers of each are read.
            make: makes them, called where the file is missing.

        Returns:
            What ``open_tensors`` needs; None where files cannot be kept here.
        """
        name = f"{what}-{_plain(digest)}-v{LAYOUT_VERSION}"
        found = self._derive(name, source, make)
        if found.path is None:
            return None
        return DerivedFile(path=found.path, name=name, fingerprint=_fingerprint(source))

    def keep_only(self, digests: Iterable[str]) -> None:
        """Removes the files of all bundles but the given ones; processes that map them keep their mapping."""
        kept = {_plain(digest) for digest in digests}
        for path in self.folder.glob("*.weights"):
            if path.name.split("-")[1] not in kept:
                path.unlink(missing_ok=True)

    def _name(self, what: str, digest: str, dtype: torch.dtype) -> str:
        kind = panel_kind(dtype)
        short = "-short" if self._library is not None and self._library.short_pays(kind) else ""
        return f"{what}-{_plain(digest)}-v{LAYOUT_VERSION}-{kind}{short}"

    def _derive(
        self, name: str, tensors: Mapping[str, Tensor], make: Callable[[], _Weights]
    ) -> Derived[_Weights]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if why := not_ours(self.folder):
                return _in_memory(make, f"the folder for packed weights {why}")
            path, fingerprint = self.folder / f"{name}.weights", _fingerprint(tensors)
            found, made_s = _open(path, name, fingerprint), 0.0
            if found is None:
                with locked(self.folder / f"{name}.lock", patience_s=_LOCK_PATIENCE_S):
                    found = _open(path, name, fingerprint)
                    if found is None:
                        begin_s = time.monotonic()
                        _write(path, name, fingerprint, make())
                        give_back_freed()
                        found = _open(path, name, fingerprint)
                        made_s = time.monotonic() - begin_s
        except OSError as error:
            return _in_memory(make, f"packed weights cannot be kept in a file ({error})")
        if found is None:
            return _in_memory(make, "the file that was just made cannot be read")
        return Derived(weights=found, path=path, made_s=made_s)


def open_tensors(file: DerivedFile) -> dict[str, Tensor] | None:
    """Maps the tensors of a file; None where it is gone or not whole."""
    found = _open(file.path, file.name, file.fingerprint)
    return None if found is None else dict(found)


def verify(path: Path) -> bool:
    """Whether a derived file's data have the digest that its header states; reads all of it."""
    with path.open("rb") as stream:
        header = _read_header(stream.read(_PREFIX.size), stream.read)
        if header is None:
            return False
        stream.seek(header["data_begin"])
        state = hashlib.sha256()
        for piece in read_pieces(stream):
            state.update(piece)
    return bool(state.hexdigest() == header["data_digest"])


def _in_memory(make: Callable[[], _Weights], why: str) -> Derived[_Weights]:
    begin_s = time.monotonic()
    weights = make()
    reason = f"Weights are packed in this process's own memory, since {why}."
    return Derived(weights=weights, path=None, made_s=time.monotonic() - begin_s, reason=reason)


def _plain(digest: str) -> str:
    """A digest as a part of a file name; no other name becomes the same."""
    plain = digest.removeprefix("sha256:")
    whole = len(plain) == 64 and set(plain) <= set("0123456789abcdef")
    return plain if whole else hashlib.sha256(digest.encode()).hexdigest()


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """What tells weights from others that were given the same digest by mistake: a few numbers of each."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in (flat[:8], flat[-8:]):
            state.update(part.double().numpy().tobytes())
    return state.hexdigest()


def _write(path: Path, name: str, fingerprint: str, weights: object) -> None:
    layout = Layout()
    tree = describe(weights, layout)
    blocks = list(_blocks(layout))
    state = hashlib.sha256()
    for piece in pieces_of(blocks):
        state.update(piece)
    fields = {
        "name": name,
        "fingerprint": fingerprint,
        "data_bytes": layout.size_bytes,
        "data_digest": state.hexdigest(),
        "boot": _boot(),
        "tree": tree,
    }
    header = json.dumps(fields, separators=(",", ":")).encode()
    handle, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(_PREFIX.pack(_MAGIC, len(header), hashlib.sha256(header).digest()))
            stream.write(header)
            stream.write(bytes(-stream.tell() % _PAGE_BYTES))
            for piece in pieces_of(blocks):
                stream.write(piece)
        Path(temporary).chmod(0o400)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _blocks(layout: Layout) -> Iterable[memoryview]:
    """The bytes of a layout from first to last, without copying tensors."""
    position = 0
    for begin, tensor in layout.tensors:
        if begin > position:
            yield memoryview(bytes(begin - position))
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        yield flat.numpy().data
        position = begin + tensor.nbytes
    if layout.size_bytes > position:
        yield memoryview(bytes(layout.size_bytes - position))


def _open(path: Path, name: str, fingerprint: str) -> Any:
    """The weights of a whole file that was made from these, mapped; None where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # there is none, or a link that is not followed
            return None
        raise
    with os.fdopen(handle, "rb") as stream:
        header = _read_header(stream.read(_PREFIX.size), stream.read)
        if header is None or not _fits(header, path, name, fingerprint):
            return None
        memory = mmap.mmap(
            stream.fileno(),
            header["data_bytes"],
            flags=mmap.MAP_PRIVATE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=header["data_begin"],
        )
    _enter_pages(memory)
    try:
        return restore(header["tree"], torch.frombuffer(memory, dtype=torch.uint8))
    except NotATree:
        return None


def _fits(header: dict[str, Any], path: Path, name: str, fingerprint: str) -> bool:
    """Whether a file of this header is whole, of our making, and made from these weights."""
    return (
        not_ours(path) is None
        and (header["name"], header["fingerprint"]) == (name, fingerprint)
        and path.stat().st_size == header["data_begin"] + header["data_bytes"]
        and ((header["boot"] is not None and header["boot"] == _boot()) or verify(path))
    )


def _read_header(prefix: bytes, read: Callable[[int], bytes]) -> dict[str, Any] | None:
    """A header whose digest is right, with the first byte of the data; None for any other file."""
    if len(prefix) != _PREFIX.size:
        return None
    magic, header_bytes, digest = _PREFIX.unpack(prefix)
    if magic != _MAGIC or header_bytes > 64 << 20:
        return None
    text = read(header_bytes)
    if hashlib.sha256(text).digest() != digest:
        return None
    end = _PREFIX.size + header_bytes
    return cast("dict[str, Any]", json.loads(text)) | {"data_begin": end + -end % _PAGE_BYTES}


def _boot() -> str | None:
    """What names the time since the machine was started; None where nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _enter_pages(memory: mmap.mmap) -> None:
    """Enters all pages now, so that the first steps do not stop at each; older kernels enter them then."""
    try:
        memory.madvise(_MADV_POPULATE_READ)
    except OSError:
        memory.madvise(mmap.MADV_WILLNEED)
