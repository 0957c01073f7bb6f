# SPDX-License-Identifier: Apache-2.0
"""A small town for tests of the register: a platform, two owners, two consumers, and shorthands for acts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from model_core.packing.canonical import digest_of, merkle_root
from model_core.packing.manifest import BaseManifest, DataCard, ExpertManifest, ModelShape
from policy.billing.books import Ledger
from policy.billing.metering import Metering
from policy.records.assets import ExpertRecord
from policy.records.billing import Reservation, UsageRecord
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import ChangeItem, ConsentGive, DeploymentPut, GrantGive, ListingPut, RulePermit
from policy.register import Register
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.datasets import Datasets
from tenants.roles import Principal, Role

START = 1_800_000_000_000_000
PURPOSE, REGION = "research", "eu"
ERASURE_TABLES = ("notices", "legal_holds", "erasures", "erasure_events", "notifications")
WORKFLOW_TABLES = ("change_drafts", "change_approvals", "stops", "expert_evaluations", "impact_reports")
ZERO = "sha256:" + "0" * 64
Answer = TypeVar("Answer")


def digest(word: str) -> str:
    """A digest that stands for a word."""
    return digest_of(word)


class Town:
    """People and assets, made once per test; every act is a unit of work of its own, a second apart."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.now = START
        self.people: dict[str, Principal] = {}
        self.base = digest("base")
        self.letters: ExpertRecord | None = None
        with database.unit_of_work() as session:
            accounts = Accounts(session, self.now)
            for slug in ("platform", "acme", "beta", "shop", "club"):
                accounts.create_tenant(slug, slug.title())
            for name, tenant, role in (
                ("olga", "platform", Role.OPERATOR),
                ("carl", "platform", Role.COMPLIANCE),
                ("cleo", "platform", Role.COMPLIANCE),
                ("ada", "acme", Role.OWNER),
                ("alan", "acme", Role.OWNER),
                ("bob", "beta", Role.OWNER),
                ("dora", "shop", Role.DEVELOPER),
                ("dirk", "shop", Role.DEVELOPER),
                ("clara", "club", Role.DEVELOPER),
                ("audit", "platform", Role.AUDITOR),
            ):
                self.people[name] = accounts.create_key(tenant, name, {role}).principal
            Register(session, self.now).add_base(base_manifest(), self.base)

    def __getattr__(self, name: str) -> Principal:
        """The principal of that name."""
        try:
            return self.people[name]
        except KeyError:
            raise AttributeError(name) from None

    @contextmanager
    def register(self) -> Iterator[Register]:
        """The register in a unit of work, one second after the last."""
        self.now += 1_000_000
        with self.database.unit_of_work() as session:
            yield Register(session, self.now)

    @contextmanager
    def metering(self) -> Iterator[Metering]:
        """The metering in a unit of work, one second after the last."""
        self.now += 1_000_000
        with self.database.unit_of_work() as session:
            yield Metering(session, self.now)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger in a unit of work, one second after the last."""
        self.now += 1_000_000
        with self.database.unit_of_work() as session:
            yield Ledger(session, self.now)

    def act(self, what: Callable[[Register], Answer]) -> Answer:
        """Does one thing in the register."""
        with self.register() as register:
            return what(register)

    def expert(self, tenant: str = "acme", name: str = "letters") -> ExpertRecord:
        """A sealed expert with a dataset of its own tenant."""
        with self.database.unit_of_work() as session:
            card = DataCard(documents=1, text_bytes=4, license="MIT", merkle_root=merkle_root([b"a"]))
            data = Datasets(session, self.now).add(tenant, name, card, digest(f"{tenant}/{name}"), 4)
            register = Register(session, self.now)
            version = len(register.experts(tenant))
            manifest = expert_manifest(tenant, name, self.base)
            return register.admit_expert(manifest, digest(f"{tenant}/{name}/{version}"), [data.id], tenant)

    def propose(self, author: Principal, *items: ChangeItem) -> ChangeRecord:
        """Drafts a change."""
        return self.act(lambda register: register.propose(author, "a change", items))

    def widen(self, author: Principal, approver: Principal, *items: ChangeItem) -> Publication:
        """Proposes and approves."""
        change = self.propose(author, *items)
        return self.act(lambda register: register.approve(change.id, change.digest, approver))

    def open_all(self, *experts: ExpertRecord, price: int = 1_000) -> None:
        """Lists, consents to and grants experts, permits everything by rule, and deploys ``shop-ask``."""
        for expert in experts:
            owner = self.ada if expert.tenant == "acme" else self.bob
            items: list[ChangeItem] = [
                ListingPut(expert_id=expert.expert_id, price_micro_per_1k_tokens=price, license="MIT"),
                consent(expert),
                GrantGive(expert_id=expert.expert_id, consumer_tenant="shop"),
            ]
            self.widen(owner, self.carl, *items)
        self.widen(self.carl, self.cleo, RulePermit(text="everything"))
        self.widen(self.dora, self.carl, deployment(self.base))

    def members(self, name: str = "shop-ask") -> set[str]:
        """Expert ids that a deployment runs now."""
        with self.register() as register:
            return {member.expert_id for member in register.deployment(name).composition.members}

    def budget(self, tenant: str, limit_micro: int) -> None:
        """Sets a budget."""
        with self.ledger() as ledger:
            ledger.set_budget(tenant, limit_micro)

    def reserve(self, max_tokens: int = 100, deployment_name: str = "shop-ask") -> Reservation:
        """Admits a request of the shop."""
        with self.metering() as metering:
            return metering.reserve(self.dora, deployment_name, max_tokens)


def usage(
    reservation: Reservation, experts: dict[str, int], tokens: int, *, final: bool = False, **changes: Any
) -> UsageRecord:
    """A usage record of a request."""
    fields: dict[str, Any] = {
        "request_id": reservation.request_id,
        "deployment": reservation.deployment,
        "epoch": reservation.epoch,
        "composition_digest": reservation.composition_digest,
        "prompt_tokens": 3,
        "completion_tokens": tokens,
        "experts": experts,
        "at_us": reservation.created_at_us + 10,
        "final": final,
    }
    return UsageRecord(**(fields | changes))


def consent(expert: ExpertRecord, **changes: Any) -> ConsentGive:
    """Consent to the shop's use of an expert."""
    fields: dict[str, Any] = {"expert_id": expert.expert_id, "purpose": PURPOSE, "region": REGION}
    return ConsentGive(**(fields | changes))


def deployment(base: str, name: str = "shop-ask", tenant: str = "shop", **changes: Any) -> DeploymentPut:
    """The shop's endpoint."""
    fields: dict[str, Any] = {
        "name": name,
        "tenant": tenant,
        "base_digest": base,
        "purpose": PURPOSE,
        "region": REGION,
        "commercial": False,
    }
    return DeploymentPut(**(fields | changes))


def base_manifest() -> BaseManifest:
    """A tiny base."""
    shape = ModelShape(
        n_layers=1,
        d_model=4,
        n_heads=1,
        n_kv_heads=1,
        d_ffn=4,
        vocab_size=8,
        max_positions=8,
        rope_theta=1e4,
        norm_eps=1e-6,
    )
    return BaseManifest(
        name="tiny",
        shape=shape,
        tokenizer_digest=ZERO,
        weights_digest=ZERO,
        license="CC0-1.0",
        trained_on="numbers",
        created_at_us=START,
        code_version="0",
        files={"base.safetensors": ZERO, "tokenizer.json": ZERO},
    )


def expert_manifest(tenant: str, name: str, base: str, **changes: Any) -> ExpertManifest:
    """A tiny expert."""
    fields: dict[str, Any] = {
        "name": name,
        "tenant": tenant,
        "base_digest": base,
        "tokenizer_digest": ZERO,
        "d_ffn": 4,
        "n_layers": 1,
        "d_model": 4,
        "recipe": {"steps": 1},
        "seeds": {"data": 1},
        "data_card": DataCard(documents=1, text_bytes=4, license="MIT", merkle_root=merkle_root([b"a"])),
        "metrics": {"bits_per_byte": 1.5},
        "files": {"expert.safetensors": ZERO, "metrics.jsonl": ZERO},
        "created_at_us": START,
        "code_version": "0",
        "torch_version": "2",
        "threads": 1,
    }
    return ExpertManifest(**(fields | changes))
