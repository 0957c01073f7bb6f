# SPDX-License-Identifier: Apache-2.0
"""Real text that every installation has, sorted into four private domains and a public mix.

Nothing is downloaded: the text is carried by Python itself and by the packages that the product depends
on at run time. The private domains stand for the data of four tenants; the public mix is prose from
documentation strings and package descriptions under permissive licenses, on which the starter base was
trained. Splits go by document id, no document or near-duplicate stands in two places, and the same
installation always gives the same bytes. Run ``python -m examples.corpus FOLDER`` to write it.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import html
import importlib.metadata
import inspect
import json
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_core.text.documents import Document, drop_near_duplicates, split_of, write_documents

PUBLIC = "public"
PRIVATE_SHARES = {"dataset": 0.88, "heldout": 0.12}
PUBLIC_SHARES = {"train": 0.88, "calibration": 0.05, "heldout": 0.07}
MAX_DOCUMENT_CHARACTERS = 12_000
MIN_DOCUMENT_CHARACTERS = 600
MAX_HELDOUT_DOCUMENTS = 150

# Packages whose documentation strings make the public mix, with the license that each declares. None of
# them is copyleft, so a sample of the text may be shipped with the starter base.
PUBLIC_PACKAGES: dict[str, tuple[str, str]] = {
    "accelerate": ("accelerate", "Apache-2.0"),
    "aiohttp": ("aiohttp", "Apache-2.0 AND MIT"),
    "alembic": ("alembic", "MIT"),
    "anyio": ("anyio", "MIT"),
    "attrs": ("attr", "MIT"),
    "click": ("click", "BSD-3-Clause"),
    "cryptography": ("cryptography", "Apache-2.0 OR BSD-3-Clause"),
    "fastapi": ("fastapi", "MIT"),
    "filelock": ("filelock", "MIT"),
    "fonttools": ("fontTools", "MIT"),
    "fsspec": ("fsspec", "BSD-3-Clause"),
    "google-api-core": ("google/api_core", "Apache-2.0"),
    "google-auth": ("google/auth", "Apache-2.0"),
    "httpx": ("httpx", "BSD-3-Clause"),
    "huggingface-hub": ("huggingface_hub", "Apache-2.0"),
    "jinja2": ("jinja2", "BSD-3-Clause"),
    "jsonschema": ("jsonschema", "MIT"),
    "matplotlib": ("matplotlib", "PSF-2.0"),
    "networkx": ("networkx", "BSD-3-Clause"),
    "numpy": ("numpy", "BSD-3-Clause"),
    "opentelemetry-sdk": ("opentelemetry", "Apache-2.0"),
    "packaging": ("packaging", "Apache-2.0 OR BSD-2-Clause"),
    "pillow": ("PIL", "MIT-CMU"),
    "pydantic": ("pydantic", "MIT"),
    "pygments": ("pygments", "BSD-2-Clause"),
    "pyparsing": ("pyparsing", "MIT"),
    "ray": ("ray", "Apache-2.0"),
    "requests": ("requests", "Apache-2.0"),
    "rich": ("rich", "MIT"),
    "safetensors": ("safetensors", "Apache-2.0"),
    "sqlalchemy": ("sqlalchemy", "MIT"),
    "starlette": ("starlette", "BSD-3-Clause"),
    "torch": ("torch", "BSD-3-Clause"),
    "typer": ("typer", "MIT"),
    "urllib3": ("urllib3", "MIT"),
    "uvicorn": ("uvicorn", "BSD-3-Clause"),
    "virtualenv": ("virtualenv", "MIT"),
    "websockets": ("websockets", "BSD-3-Clause"),
}
# Parts of large packages that hold little prose, or generated code: left out to save the reading.
_SKIPPED_PARTS = frozenset(
    [
        "test",
        "tests",
        "testing",
        "_vendor",
        "vendored",
        "_inductor",
        "_dynamo",
        "_refs",
        "_decomp",
        "onnx",
        "thirdparty_files",
        "rllib",
        "generated",
        "protobuf",
        "cloudpickle",
        "runtime_env",
        "autoscaler",
        "_prims",
        "fx",
        "jit",
        "benchmarks",
    ]
)
# A definition's name, or a documentation string; ten times faster than parsing, and exact enough for prose.
_DOCUMENTED = re.compile(
    r'^[ \t]*(?:async )?(?:def|class) (?P<name>\w+)|^[ \t]*[rR]?"""(?P<words>.*?)"""',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """One domain of the corpus: where its splits lie and how much they hold.

    Attributes:
        name: slug, ``public`` or a private domain.
        title: for people.
        license: SPDX expression of the text.
        files: split name to JSON-lines file.
        documents: split name to number of documents.
        text_bytes: split name to UTF-8 bytes of text.
        dropped: near-duplicates that were taken out.
    """

    name: str
    title: str
    license: str
    files: dict[str, Path]
    documents: dict[str, int]
    text_bytes: dict[str, int]
    dropped: int


def _site_packages() -> Path:
    return Path(sysconfig.get_paths()["purelib"])


def _clip(text: str) -> str:
    """The document's text: clean line ends, no runs of blank lines, cut at a line when too long."""
    text = re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\x00", "")).strip()
    if len(text) > MAX_DOCUMENT_CHARACTERS:
        text = text[:MAX_DOCUMENT_CHARACTERS].rsplit("\n", 1)[0]
    return text + "\n"


def _chosen(paths: list[Path], root: Path, budget_bytes: int, *, cap_bytes: int) -> Iterator[Path]:
    """Files in an order that looks random but depends on their relative names alone, up to a budget."""
    keyed = sorted(
        paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
    )
    for path in keyed:
        size = path.stat().st_size
        if size < MIN_DOCUMENT_CHARACTERS:
            continue
        yield path
        budget_bytes -= min(size, cap_bytes)
        if budget_bytes <= 0:
            return


def _source_files(
    prefix: str,
    root: Path,
    suffixes: tuple[str, ...],
    *,
    skip: Callable[[tuple[str, ...]], bool],
    budget: int,
) -> Iterator[Document]:
    paths = [
        path
        for suffix in suffixes
        for path in root.rglob(f"*{suffix}")
        if path.is_file() and not skip(path.relative_to(root).parts)
    ]
    for path in _chosen(paths, root, budget, cap_bytes=MAX_DOCUMENT_CHARACTERS):
        text = path.read_text(encoding="utf-8", errors="replace")
        if "\ufffd" not in text:
            yield Document(id=f"{prefix}/{path.relative_to(root).as_posix()}", text=text)


def _python_library() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {
        "site-packages",
        "test",
        "tests",
        "idle_test",
        "lib2to3",
        "pydoc_data",
        "encodings",
        "ensurepip",
    }
    yield from _source_files(
        "python", root, (".py",), skip=lambda parts: bool(skipped & set(parts)), budget=4_000_000
    )


def _cpp_headers() -> Iterator[Document]:
    root = _site_packages() / "torch" / "include"
    generated = {"ops", "google", "oneapi", "oneDNN", "dnnl"}
    for document in _source_files(
        "cpp",
        root,
        (".h", ".hpp", ".cuh"),
        skip=lambda parts: bool(generated & set(parts[:-1])),
        budget=4_000_000,
    ):
        # A license comment at the head of a file is boilerplate of its project, not of this document.
        text = re.sub(r"\A(?:\s*(?:/\*.*?\*/|//[^\n]*\n))+", "", document.text, flags=re.DOTALL)
        yield Document(id=document.id, text=text)


def _cloud_documentation() -> Iterator[Document]:
    root = _site_packages() / "botocore" / "data"
    newest = {path.parent.parent.name: path for path in sorted(root.glob("*/*/service-2.json.gz"))}
    for path in _chosen(list(newest.values()), root, 4_000_000, cap_bytes=24_000):
        service = path.parent.parent.name
        document = json.loads(gzip.decompress(path.read_bytes()))
        pieces = [document.get("documentation", "")]
        pieces += [
            f"{name}\n{item.get('documentation', '')}" for name, item in document["operations"].items()
        ]
        for name, shape in sorted(document["shapes"].items()):
            members = shape.get("members", {})
            described = [
                (key, value["documentation"]) for key, value in members.items() if "documentation" in value
            ]
            pieces += [f"{name}.{key}: {words}" for key, words in described]
        plain = [_without_tags(piece) for piece in pieces]
        # Two documents a service: its operations, and the fields of its messages.
        half = 1 + len(document["operations"])
        for part, items in (("operations", plain[:half]), ("fields", plain[half:])):
            yield Document(id=f"cloud/{service}/{part}", text="\n\n".join(dict.fromkeys(items)))


def _without_tags(text: str) -> str:
    text = re.sub(r"</(?:p|li|dt|dd|note)>", "\n", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return re.sub(r"[ \t]+", " ", re.sub(r"\s*\n\s*", "\n", text)).strip()


def _symbolic_mathematics() -> Iterator[Document]:
    root = _site_packages() / "sympy"
    yield from _source_files(
        "sympy", root, (".py",), skip=lambda parts: bool({"tests", "_antlr"} & set(parts)), budget=4_000_000
    )


def _public_mix() -> Iterator[Document]:
    topics = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    for name, text in ast.literal_eval(topics.read_text(encoding="utf-8").split("topics = ", 1)[1]).items():
        yield Document(id=f"topics/{name}", text=text)
    for package, (folder, _license) in PUBLIC_PACKAGES.items():
        try:
            description = importlib.metadata.metadata(package).json.get("description", "")
        except importlib.metadata.PackageNotFoundError:
            continue
        yield Document(id=f"{package}/description", text=str(description))
        yield from docstrings(package, _site_packages() / folder)


def docstrings(package: str, root: Path) -> Iterator[Document]:
    """Documentation strings of a package's modules, a dozen to a document."""
    paths = [
        path for path in root.rglob("*.py") if not _SKIPPED_PARTS & set(path.relative_to(root).parts[:-1])
    ]
    for path in _chosen(paths, root, 14_000_000, cap_bytes=1_000_000):
        pieces: list[str] = []
        name = path.stem
        for found in _DOCUMENTED.finditer(path.read_text(encoding="utf-8", errors="replace")):
            if found["name"]:
                name = found["name"]
            elif len(found["words"]) > 120:
                pieces.append(f"{name}\n\n{inspect.cleandoc(found['words'])}")
        module = path.relative_to(root).as_posix()
        # Long modules give several documents; they stay in one split because the split goes by module.
        for number, start in enumerate(range(0, len(pieces), 12)):
            yield Document(id=f"{package}/{module}#{number}", text="\n\n".join(pieces[start : start + 12]))


DOMAINS: dict[str, tuple[str, str, Callable[[], Iterator[Document]]]] = {
    "python": ("Source of the Python standard library", "PSF-2.0", _python_library),
    "cpp": ("C++ headers of PyTorch", "BSD-3-Clause", _cpp_headers),
    "cloud": ("Documentation of cloud service interfaces (botocore)", "Apache-2.0", _cloud_documentation),
    "sympy": ("Symbolic mathematics (SymPy)", "BSD-3-Clause", _symbolic_mathematics),
    PUBLIC: ("Prose from the documentation of open packages", "LicenseRef-permissive-mix", _public_mix),
}


def _group(document_id: str) -> str:
    return document_id.rsplit("#", 1)[0]


def build(folder: Path) -> dict[str, Domain]:
    """Collects the text, takes out near-duplicates across everything, and writes every split.

    Args:
        folder: receives ``<domain>/<split>.jsonl``; existing files are overwritten.

    Returns:
        The domains by name, the public mix last.
    """
    split: dict[str, tuple[str, str]] = {}
    documents: list[Document] = []
    for name, (_title, _license, collect) in DOMAINS.items():
        shares = PUBLIC_SHARES if name == PUBLIC else PRIVATE_SHARES
        for raw in collect():
            document = Document(id=raw.id, text=_clip(raw.text))
            if len(document.text) >= MIN_DOCUMENT_CHARACTERS:
                split[document.id] = (name, split_of(_group(document.id), shares, salt="corpus"))
                documents.append(document)
    # What stands first stays: held-out text, then calibration text, then private text before public.
    order = {"heldout": 0, "calibration": 1, "dataset": 2, "train": 3}
    documents.sort(key=lambda document: (order[split[document.id][1]], document.id))
    kept, _dropped = drop_near_duplicates(documents)
    counts_before = _count(documents, split)
    domains = {}
    for name, (title, license_, _collect) in DOMAINS.items():
        shares = PUBLIC_SHARES if name == PUBLIC else PRIVATE_SHARES
        parts = {key: [item for item in kept if split[item.id] == (name, key)] for key in shares}
        parts["heldout"] = sorted(
            parts["heldout"], key=lambda item: hashlib.sha256(item.id.encode()).digest()
        )
        parts["heldout"] = parts["heldout"][:MAX_HELDOUT_DOCUMENTS]
        files = {key: folder / name / f"{key}.jsonl" for key in shares}
        for key, path in files.items():
            write_documents(path, parts[key])
        domains[name] = Domain(
            name=name,
            title=title,
            license=license_,
            files=files,
            documents={key: len(items) for key, items in parts.items()},
            text_bytes={key: sum(item.size_bytes for item in items) for key, items in parts.items()},
            dropped=counts_before[name] - _count(kept, split)[name],
        )
    return domains


def _count(
    documents: tuple[Document, ...] | list[Document], split: dict[str, tuple[str, str]]
) -> dict[str, int]:
    counts = dict.fromkeys(DOMAINS, 0)
    for document in documents:
        counts[split[document.id][0]] += 1
    return counts


def sources() -> tuple[tuple[str, str, str], ...]:
    """The packages of the public mix that are installed: name, version, license."""
    found = [("python", sys.version.split()[0], "PSF-2.0")]
    for package, (_folder, license_) in PUBLIC_PACKAGES.items():
        try:
            found.append((package, importlib.metadata.version(package), license_))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def main(arguments: list[str]) -> int:
    """Writes the corpus into the folder named on the command line and prints what it holds."""
    folder = Path(arguments[0]) if arguments else Path("build/corpus")
    began = time.monotonic()
    for domain in build(folder).values():
        held = ", ".join(
            f"{key}: {count} documents, {domain.text_bytes[key] / 1e6:.2f} MB"
            for key, count in domain.documents.items()
        )
        print(f"{domain.name:8} {held}; {domain.dropped} near-duplicates dropped")
    print(f"{time.monotonic() - began:.1f} s, in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
