# SPDX-License-Identifier: Apache-2.0
"""The demo's corpus leaks nothing, and the starter base is what it says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import corpus, make_base
from examples.calibration_text import PACKAGES
from model_core.packing.bundle import check_bundle
from model_core.packing.manifest import CALIBRATION_FILE
from model_core.text.documents import Document, drop_near_duplicates, read_documents


def _words(seed: object, count: int = 300) -> str:
    numbers = random.Random(str(seed))
    return " ".join(f"w{numbers.randrange(100_000)}" for _ in range(count))


def _invented(name: str) -> Iterator[Document]:
    for index in range(60):
        yield Document(id=f"{name}/{index}", text=_words((name, index)))
    # The same text in every domain, and one document twice within the domain.
    yield Document(id=f"{name}/shared", text=_words("shared"))
    yield Document(id=f"{name}/again", text=_words((name, 3)) + " tail")
    for part in range(4):
        yield Document(id=f"{name}/long#{part}", text=_words((name, "long", part)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five invented domains in the place of the real ones."""
    domains = {
        name: (title, license_, lambda name=name: _invented(name))
        for name, (title, license_, _collect) in corpus.DOMAINS.items()
    }
    monkeypatch.setattr(corpus, "DOMAINS", domains)


def test_no_document_or_near_duplicate_stands_twice(small: None, tmp_path: Path) -> None:
    """Ids are distinct everywhere, copies are gone, and parts of one work stay together."""
    domains = corpus.build(tmp_path)
    everything = [
        (name, split, document)
        for name, domain in domains.items()
        for split, path in domain.files.items()
        for document in read_documents(path)
    ]
    documents = [document for _, _, document in everything]
    assert len({document.id for document in documents}) == len(documents)
    assert drop_near_duplicates(documents)[1] == 0
    assert sum(domain.dropped for domain in domains.values()) == 5 + 4
    for name in domains:
        assert len({split for where, split, item in everything if where == name and "long#" in item.id}) == 1
    again = corpus.build(tmp_path / "again")
    for name, domain in domains.items():
        for split, path in domain.files.items():
            assert path.read_bytes() == again[name].files[split].read_bytes()


def test_the_public_mix_names_its_licenses() -> None:
    """No package of the public mix is copyleft."""
    assert all(license_ for _, _, license_ in corpus.sources())
    assert not any("GPL" in license_ or "MPL" in license_ for _, _, license_ in corpus.sources())


def test_the_starter_base_is_whole_and_travels_with_no_words_of_others() -> None:
    """Its digests and seal hold, it is within 25 MB, and its text is the product's own or the base's own."""
    checked = check_bundle(make_base.STARTER)
    assert checked.manifest.kind == "base"
    assert sum(path.stat().st_size for path in make_base.STARTER.iterdir()) <= 25_000_000
    texts = read_documents(make_base.STARTER / CALIBRATION_FILE)
    origins = {document.id.partition("/")[0] for document in texts}
    assert origins == {"pages", "base", *PACKAGES}
    assert sum(document.size_bytes for document in texts) <= make_base.MAX_CALIBRATION_BYTES
