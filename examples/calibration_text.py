# SPDX-License-Identifier: Apache-2.0
"""The public text that travels with the starter base: words of our own, and words of the base's own.

Owners fit gates against it and calibrate on it. It must stand for public text without being anybody else's:
so one half is the documentation of this product, the other is drawn from the base itself, whose samples
follow the public mix that it learned. Samples that hold an address are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from examples import corpus
from model_core.engine.engine import Engine
from model_core.engine.requests import Sampling, SequenceRequest
from model_core.network.bank import ExpertBank
from model_core.network.decoder import Decoder
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer

PACKAGES = ("cluster", "policy", "tenants", "model_core")
SAMPLES = 128
SAMPLE_TOKENS = 360
TEMPERATURE = 0.9
_ADDRESS = re.compile(r"://|www\.|@\w+\.|/(?:home|root|tmp|usr|opt)/")


def own_documents(root: Path) -> list[Document]:
    """The product's pages and the documentation strings of its modules."""
    pages = [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").rglob("*.md"))]
    found = [
        Document(id=f"pages/{page.relative_to(root).as_posix()}", text=page.read_text(encoding="utf-8"))
        for page in pages
    ]
    for package in PACKAGES:
        found += [
            Document(id=document.id, text=document.text)
            for document in corpus.docstrings(package, root / package)
        ]
    return [document for document in found if len(document.text) >= corpus.MIN_DOCUMENT_CHARACTERS]


def sampled_documents(decoder: Decoder, tokenizer: TextTokenizer, *, seed: int) -> list[Document]:
    """What the base says when it is asked nothing."""
    digest = "sha256:" + "0" * 64
    bank = ExpertBank(digest, decoder)
    engine = Engine(bank, max_sequences=SAMPLES, max_context=SAMPLE_TOKENS + 1)
    key = bank.state_key((), top_k=1, consumer="calibration")
    texts: dict[str, list[int]] = {}
    for number in range(SAMPLES):
        name = f"sample-{number:03}"
        texts[name] = []
        sampling = Sampling(max_tokens=SAMPLE_TOKENS, temperature=TEMPERATURE, seed=seed + number)
        start = (tokenizer.end_of_text_id,)
        engine.submit(
            SequenceRequest(
                request_id=name, prompt_ids=start, experts=(), top_k=1, state_key=key, sampling=sampling
            )
        )
    while not engine.idle:
        for event in engine.step():
            if event.token_id != tokenizer.end_of_text_id:
                texts[event.request_id].append(event.token_id)
        engine.commit()
    said = [Document(id=f"base/{name}", text=tokenizer.decode(ids)) for name, ids in texts.items()]
    return [document for document in said if not _ADDRESS.search(document.text)]
