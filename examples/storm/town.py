# SPDX-License-Identifier: Apache-2.0
"""Founds a marketplace with many experts and many endpoints, each with an expert set of its own.

It is founded at the office's own counter before anything else runs, since what is played afterwards is
serving: experts are admitted without a weighing. From then on everybody comes through the doors.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.bootstrap import keep_base, open_office
from cluster.office.counter import Office
from cluster.office.desk import Desk
from cluster.settings import Settings
from examples.storm.goods import Sizes, make_base, make_expert
from model_core.packing.bundle import CheckedBundle
from model_core.packing.canonical import merkle_root
from model_core.packing.keys import load_or_create_key
from model_core.packing.manifest import BaseManifest, DataCard, ExpertManifest

CONSUMERS = ("apps", "labs")
_OWNERS = 4
_PRICE_MICRO = 2000
_CAST = {"carol": ("platform", "compliance"), "chidi": ("platform", "compliance")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ware:
    """One expert on the market.

    Attributes:
        name: shown in receipts.
        owner: tenant.
        expert_id: of the register.
        digest: of its bundle.
    """

    name: str
    owner: str
    expert_id: str
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Town:
    """What was founded.

    Attributes:
        keys: API key by person; an owner's person is called as its tenant.
        base_digest: the base.
        wares: experts, in the order of their names.
        endpoints: deployment name to (consumer tenant, names of its candidates).
    """

    keys: dict[str, str]
    base_digest: str
    wares: tuple[Ware, ...]
    endpoints: dict[str, tuple[str, tuple[str, ...]]]

    @property
    def digests(self) -> dict[str, str]:
        """Bundle digest by expert name."""
        return {ware.name: ware.digest for ware in self.wares}

    def ware(self, name: str) -> Ware:
        """An expert by name."""
        return next(ware for ware in self.wares if ware.name == name)

    def save(self, path: Path) -> None:
        """Writes it down, keys included, for its owner's eyes."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Town:
        """Reads what ``save`` wrote."""
        told = json.loads(path.read_text())
        return cls(
            keys=told["keys"],
            base_digest=told["base_digest"],
            wares=tuple(Ware(**ware) for ware in told["wares"]),
            endpoints={name: (who, tuple(names)) for name, (who, names) in told["endpoints"].items()},
        )


def consent(ware: Ware) -> dict[str, Any]:
    """The item by which an owner permits its expert for research."""
    return {"kind": "consent.give", "expert_id": ware.expert_id, "purpose": "research"}


def expert_sets(names: tuple[str, ...], count: int, size: int) -> list[tuple[str, ...]]:
    """Different sets of experts that use every expert about equally often.

    Args:
        names: of all experts.
        count: how many sets.
        size: experts in each.
    """
    strides = itertools.count(1)
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        stride = next(strides)
        for first in range(len(names)):
            places = {(first + step * stride) % len(names) for step in range(size)}
            one = tuple(names[place] for place in sorted(places))
            if len(one) == min(size, len(names)) and one not in found and len(found) < count:
                found.append(one)
        if stride > len(names):
            raise ValueError(f"There are not {count} sets of {size} among {len(names)} experts.")
    return found


def found(
    settings: Settings,
    scratch: Path,
    *,
    experts: int = 16,
    endpoints: int = 16,
    set_size: int = 4,
    top_k: int = 2,
    sizes: Sizes,
) -> Town:
    """Founds a town in an installation's home, and closes the office again.

    Args:
        settings: of the installation; its home is new.
        scratch: for files on the way.
        experts: how many.
        endpoints: deployments, each with a set of its own.
        set_size: experts of each.
        top_k: experts per token, the public one counted.
        sizes: of base and experts.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with _counter(settings) as counter:
        founding = _Founding(counter, settings, scratch)
        founding.people()
        base = founding.base(sizes)
        wares = tuple(founding.expert(base, number, sizes) for number in range(experts))
        founding.permit(wares)
        sets = expert_sets(tuple(ware.name for ware in wares), endpoints, set_size)
        named = founding.endpoints(base.digest, wares, sets, top_k)
        return Town(keys=founding.keys, base_digest=base.digest, wares=wares, endpoints=named)


class _Counter:
    """The office, asked one question after the other."""

    def __init__(self, office: Office, runner: asyncio.Runner) -> None:
        self._office, self._runner = office, runner

    def call(self, operation: str, key: str, **fields: Any) -> dict[str, Any]:
        return self._runner.run(self._office.call(operation, key, fields))

    def do(self, work: Any) -> Any:
        return self._runner.run(self._office.do(work))


@contextmanager
def _counter(settings: Settings) -> Iterator[_Counter]:
    office = open_office(settings.model_dump(mode="json"))
    try:
        with asyncio.Runner() as runner:
            yield _Counter(office, runner)
    finally:
        office.close()


class _Founding:
    def __init__(self, counter: _Counter, settings: Settings, scratch: Path) -> None:
        self._counter, self._scratch = counter, scratch
        self._home = settings.home
        self.keys: dict[str, str] = {}

    def people(self) -> None:
        operator = self.keys["operator"] = (self._home / "operator.key").read_text().strip()
        owners = [f"owner-{number}" for number in range(_OWNERS)]
        for slug in (*owners, *CONSUMERS):
            self._counter.call("tenants.create", operator, slug=slug, title=slug, country="DE")
        cast = _CAST | {slug: (slug, "owner") for slug in owners}
        cast |= {slug: (slug, "developer") for slug in CONSUMERS}
        for person, (tenant, role) in cast.items():
            made = self._counter.call("keys.create", operator, tenant=tenant, principal=person, roles=[role])
            self.keys[person] = made["secret"]
        for slug in CONSUMERS:
            self._counter.call("ledger.budget", operator, tenant=slug, limit_micro=10**13)

    def base(self, sizes: Sizes) -> CheckedBundle:
        def keep(desk: Desk) -> CheckedBundle:
            key = load_or_create_key(desk.home.owner_key("platform"))
            checked = make_base(self._scratch / "base", self._scratch / "files", sizes, key)
            manifest = checked.manifest
            assert isinstance(manifest, BaseManifest)  # noqa: S101  (made one line above)
            keep_base(desk, checked)
            desk.register.add_base(manifest, checked.digest)
            return checked

        checked: CheckedBundle = self._counter.do(keep)
        return checked

    def expert(self, base: CheckedBundle, number: int, sizes: Sizes) -> Ware:
        owner, name = f"owner-{number % _OWNERS}", f"expert-{number:02}"

        def admit(desk: Desk) -> Ware:
            keys = load_or_create_key(desk.home.owner_key(owner)), load_or_create_key(desk.home.admission_key)
            made = make_expert(
                self._scratch / name,
                base,
                name=name,
                tenant=owner,
                seed=number + 1,
                keys=keys,
                int8=sizes.int8,
            )
            manifest = made.manifest
            assert isinstance(manifest, ExpertManifest)  # noqa: S101  (made one line above)
            desk.artifacts.put_bundle(made.folder, made.digest)
            card = DataCard(
                documents=1, text_bytes=1, license="CC0-1.0", merkle_root=merkle_root([name.encode()])
            )
            data = desk.datasets.add(owner, name, card, made.digest, 1)
            record = desk.register.admit_expert(manifest, made.digest, [data.id], owner)
            return Ware(name=name, owner=owner, expert_id=record.expert_id, digest=made.digest)

        ware: Ware = self._counter.do(admit)
        return ware

    def permit(self, wares: tuple[Ware, ...]) -> None:
        rule = {"kind": "rule.permit", "purpose": "research", "text": "Research is in scope."}
        self._agree("carol", "Research", [rule])
        for owner in sorted({ware.owner for ware in wares}):
            items: list[dict[str, Any]] = []
            for ware in wares:
                if ware.owner != owner:
                    continue
                listing = {"expert_id": ware.expert_id, "price_micro_per_1k_tokens": _PRICE_MICRO}
                items.append({"kind": "listing.put", "license": "CC0-1.0", **listing})
                items += [
                    {"kind": "grant.give", "expert_id": ware.expert_id, "consumer_tenant": consumer}
                    for consumer in CONSUMERS
                ]
                items.append(consent(ware))
            self._agree(owner, f"Terms of {owner}", items)

    def endpoints(
        self, base_digest: str, wares: tuple[Ware, ...], sets: list[tuple[str, ...]], top_k: int
    ) -> dict[str, tuple[str, tuple[str, ...]]]:
        ids = {ware.name: ware.expert_id for ware in wares}
        named = {
            f"desk-{number:02}": (CONSUMERS[number % len(CONSUMERS)], chosen)
            for number, chosen in enumerate(sets)
        }
        for consumer in CONSUMERS:
            items = [
                {
                    "kind": "deployment.put",
                    "name": name,
                    "tenant": consumer,
                    "base_digest": base_digest,
                    "purpose": "research",
                    "region": "de",
                    "commercial": False,
                    "candidates": [ids[one] for one in chosen],
                    "top_k": top_k,
                }
                for name, (tenant, chosen) in named.items()
                if tenant == consumer
            ]
            if items:
                self._agree(consumer, f"Endpoints of {consumer}", items)
        return named

    def _agree(self, author: str, title: str, items: list[dict[str, Any]]) -> None:
        change = self._counter.call("changes.propose", self.keys[author], title=title, items=items)
        approver = "chidi" if author == "carol" else "carol"
        self._counter.call(
            "changes.approve", self.keys[approver], change_id=change["id"], digest=change["digest"]
        )
