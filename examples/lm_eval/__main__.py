# SPDX-License-Identifier: Apache-2.0
"""Lets lm-eval evaluate a deployment through its own client of the completions API.

Brings a marketplace up in a folder of its own, deploys the starter base, and asks with lm-eval's
``local-completions`` model: log-likelihoods of continuations, of whole texts, and greedy continuations. Whole
texts must score as ``/score`` scores them, to 1e-3 nats. Needs the package ``lm_eval`` on the path; needs no
data set and no network.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from cluster.client import MarketplaceClient
from examples.demo.house import House
from model_core.text.tokenizer import END_OF_TEXT

_PORT = 8394
_PATIENCE_S = 120.0
TEXTS = (
    "The function returns a list of the names that were found.",
    "If the file does not exist, an error is raised.",
    "Packages are installed with pip.",
)
PAIRS = (
    ("The function returns", " a list"),
    ("If the file does", " not exist"),
    ("Installed with", " banana"),
)


def main() -> int:
    """Runs everything; 0 if every score agrees."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    folder = Path(tempfile.mkdtemp(prefix="lm-eval-"))
    house = House(home=folder / "home", port=_PORT, settings={})
    try:
        house.command("up", quiet=True)
        developer = _deploy(house)
        os.environ["OPENAI_API_KEY"] = developer.key
        model = LocalCompletionsAPI(
            model="desk",
            base_url=f"{house.url}/v1/completions",
            tokenizer_backend="huggingface",
            tokenizer=str(_tokenizer(house, folder / "tokenizer")),
            batch_size=4,
            max_length=512,
        )

        def asked(kind: str, *arguments: Any) -> list[Any]:
            instances = [
                Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)
            ]
            return list(getattr(model, kind)(instances))

        for (context, continuation), (nats, greedy) in zip(
            PAIRS, asked("loglikelihood", *PAIRS), strict=True
        ):
            print(f"- {context!r} → {continuation!r}: {nats:.3f} nats, greedy: {greedy}")
        written = asked("generate_until", (TEXTS[0], {"until": ["\n"], "max_gen_toks": 12}))
        print(f"- {TEXTS[0]!r} → {written[0]!r}")
        rolling = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
        return _compare([float(nats) for nats in rolling], developer)
    finally:
        house.command("down", quiet=True)
        shutil.rmtree(folder, ignore_errors=True)


class _Developer:
    """An app developer with a key."""

    def __init__(self, house: House, key: str) -> None:
        self.key = key
        self._url = f"{house.url}/api/v1/deployments/desk/score"

    def nats(self) -> list[float]:
        """What ``/score`` says of the texts."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(headers=headers, trust_env=False, timeout=60) as http:
            found = http.post(self._url, json={"texts": list(TEXTS)}).raise_for_status().json()
        return [-float(one["bits"]) * math.log(2) for one in found["documents"]]


def _compare(lm_eval: list[float], developer: _Developer) -> int:
    worst = 0.0
    for text, theirs, ours in zip(TEXTS, lm_eval, developer.nats(), strict=True):
        worst = max(worst, abs(theirs - ours))
        print(f"- {text!r}: lm-eval {theirs:.4f}, /score {ours:.4f} nats")
    print(f"- largest difference: {worst:.2e} nats ({'ok' if worst <= 1e-3 else 'too large'})")
    return int(worst > 1e-3)


def _deploy(house: House) -> _Developer:
    operator = house.client(house.operator_key())
    operator.call("tenants.create", slug="apps", title="Apps")

    def person(tenant: str, name: str, role: str) -> tuple[MarketplaceClient, str]:
        key = operator.call("keys.create", tenant=tenant, principal=name, roles=[role])["secret"]
        return house.client(key), key

    developer, key = person("apps", "dev", "developer")
    carol, _ = person("platform", "carol", "compliance")
    dora, _ = person("platform", "dora", "compliance")
    base = operator.call("bases.list")["items"][0]["id"]
    rule = {"kind": "rule.permit", "purpose": "research", "text": "Research is in scope."}
    desk = {
        "kind": "deployment.put",
        "name": "desk",
        "tenant": "apps",
        "base_digest": base,
        "purpose": "research",
        "region": "eu",
        "commercial": False,
        "top_k": 1,
    }
    for proposer, reviewer, item in ((carol, dora, rule), (developer, carol, desk)):
        change = proposer.call("changes.propose", title="Set up", items=[item])
        reviewer.call("changes.approve", change_id=change["id"], digest=change["digest"])
    made = _Developer(house, key)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            made.nats()
        except httpx.HTTPStatusError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return made


def _tokenizer(house: House, folder: Path) -> Path:
    """The base's tokenizer in the form that Hugging Face's loader reads."""
    folder.mkdir()
    (found,) = list((house.home / "artifacts").rglob("tokenizer.json"))[:1]
    shutil.copy(found, folder / "tokenizer.json")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "bos_token": END_OF_TEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    sys.exit(main())
