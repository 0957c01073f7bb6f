# SPDX-License-Identifier: Apache-2.0
"""The exactness probe: logits of a text under a composition, computed alone, as bytes and digest.

Two processes that hold the same base and name the same experts get the same bytes, whatever else either
holds or has ever held (at equal torch build and thread count). ``python -m cluster.hosting.probe`` computes
one in a fresh process from a folder of bundles, to compare with a running host's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from model_core.network.bank import ExpertBank, forward_logits
from model_core.packing.canonical import digest_bytes
from model_core.packing.manifest import TOKENIZER_FILE
from model_core.packing.store import DirectoryStore
from model_core.text.tokenizer import TextTokenizer


class Probe(BaseModel):
    """Logits of one text.

    Attributes:
        base: digest of the base.
        experts: bundle digests that may have computed it, sorted.
        top_k: experts per token, the public one counted.
        threads: compute threads it was made with; other numbers may round differently.
        resident: experts the process held.
        poisoned: experts it held filled with NaN.
        shape: positions and vocabulary.
        finite: whether every logit is a number.
        digest: of the bytes.
        logits: fp32, little endian, row by row.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: str
    experts: tuple[str, ...]
    top_k: int
    threads: int
    resident: tuple[str, ...]
    poisoned: tuple[str, ...]
    shape: tuple[int, int]
    finite: bool
    digest: str
    logits: bytes = Field(repr=False)


def probe(bank: ExpertBank, ids: Sequence[int], experts: Sequence[str], top_k: int) -> Probe:
    """Computes one probe; call it where nothing else touches the bank.

    Raises:
        ExpertNotResident: an expert is not here or was poisoned.
    """
    logits_SV = forward_logits(bank, ids, experts, top_k).float().contiguous()
    data = logits_SV.numpy().astype("<f4", copy=False).tobytes()
    return Probe(
        base=bank.base_digest,
        threads=torch.get_num_threads(),
        experts=tuple(sorted(experts)),
        top_k=top_k,
        resident=bank.digests,
        poisoned=bank.poisoned,
        shape=(logits_SV.shape[0], logits_SV.shape[1]),
        finite=bool(torch.isfinite(logits_SV).all()),
        digest=digest_bytes(data),
        logits=data,
    )


def main() -> int:
    """Reads ``{store, base, experts, top_k, text, threads}`` on standard input, writes the probe's digest."""
    order = json.loads(sys.stdin.read())
    torch.set_num_threads(int(order.get("threads", 1)))
    store = DirectoryStore(Path(order["store"]))
    folder = store.get_bundle(order["base"])
    bank = ExpertBank.open(order["base"], folder)
    tokenizer = TextTokenizer.load(folder / TOKENIZER_FILE)
    for digest in order["experts"]:
        bank.add_folder(digest, store.get_bundle(digest))
    ids = [tokenizer.begin_id, *tokenizer.encode(order["text"])]
    answer = probe(bank, ids, order["experts"], order["top_k"])
    sys.stdout.write(json.dumps(answer.model_dump(mode="json", exclude={"logits"})) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
