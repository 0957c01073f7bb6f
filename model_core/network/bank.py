# SPDX-License-Identifier: Apache-2.0
"""The expert bank: one base and the experts that attach to it, each mapped once and kept apart.

Experts are keyed by bundle digest; their canonical order is that of the sorted digests, after the public
expert. Adding or removing one touches no tensor of another. The bank does not know who may use an expert:
callers name the experts of every computation, and nothing else is multiplied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_core.errors import BundleWrongShape, ExpertNotResident, TensorsNotFinite
from model_core.network.checkpoint import load_base_folder, load_expert_folder
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.finite import not_finite
from model_core.network.mixture import LayerExperts, plan_uniform
from model_core.network.poisoning import fill_with_nan

PUBLIC = "public"


@dataclass(frozen=True, kw_only=True, slots=True)
class StateKey:
    """Everything that a cached state depends on besides the tokens: equal keys may share, others never.

    Attributes:
        base: digest of the base.
        experts: bundle digests in canonical order.
        router: digest of the router rows, biases and gates of these experts and the public one.
        top_k: experts per token, the public one counted.
        dtype: of the weights and states; with the number of processes where sums are spread over several.
        consumer: tenant whose prompt it is; another tenant's identical prompt must not hit.
    """

    base: str
    experts: tuple[str, ...]
    router: str
    top_k: int
    dtype: str
    consumer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedExpert:
    """An expert that fits a bank and holds no NaN (``ExpertBank.check``).

    Attributes:
        digest: of its bundle.
        expert: its weights, frozen.
        router: digest of its router rows, biases and gates.
    """

    digest: str
    expert: Expert
    router: str


class ExpertBank:
    """One base's decoder and the experts that are resident beside it.

    Args:
        base_digest: digest of the base bundle.
        decoder: its weights; frozen here.
    """

    def __init__(self, base_digest: str, decoder: Decoder) -> None:
        self.base_digest = base_digest
        self.decoder = decoder.requires_grad_(False).eval()
        self.shape = decoder.shape
        self._experts: dict[str, Expert] = {}
        self._poisoned: set[str] = set()
        self._router_digests = {
            PUBLIC: _digest_of(decoder.layer(i).router.row for i in range(self.shape.n_layers))
        }
        self._panels: list[LayerExperts] | None = None
        # Grows with every change of what is resident, so that whoever derives something from it can tell.
        self.changes = 0
        # Processes over which sums are spread: their bits depend on it. Whoever spreads them says so.
        self.ranks = 1

    @classmethod
    def open(cls, base_digest: str, base_folder: Path) -> ExpertBank:
        """Opens a bank on a verified base folder (see ``checkpoint`` for what loading raises)."""
        _, decoder = load_base_folder(base_folder)
        return cls(base_digest, decoder)

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the experts that can be used, in canonical order; poisoned ones are left out."""
        return tuple(sorted(self._experts.keys() - self._poisoned))

    @property
    def poisoned(self) -> tuple[str, ...]:
        """Digests of experts that are resident, but filled with NaN and unusable."""
        return tuple(sorted(self._poisoned))

    @property
    def dtype(self) -> torch.dtype:
        """The base's dtype, which is also that of cached states."""
        return self.decoder.embed.weight.dtype

    def add_folder(self, digest: str, folder: Path) -> None:
        """Maps a verified expert folder into the bank.

        Raises:
            BundleWrongBase: the expert was trained against another base.
            BundleNotSafetensors, BundleWrongShape, TensorsNotFinite: as ``load_expert``.
        """
        _, expert = load_expert_folder(folder, self.base_digest, self.shape)
        self.add(digest, expert)

    def add(self, digest: str, expert: Expert) -> None:
        """Takes an expert in; one of the same digest is replaced.

        Raises:
            BundleWrongShape: it does not fit the base.
            TensorsNotFinite: NaN or infinity.
        """
        self.install(self.check(digest, expert))

    def check(self, digest: str, expert: Expert) -> CheckedExpert:
        """Reads an expert through before it is taken in; any thread may, since nothing here changes.

        Raises:
            BundleWrongShape: it does not fit the base.
            TensorsNotFinite: NaN or infinity.
        """
        self._check(expert)
        router = _digest_of(
            tensor
            for name, tensor in sorted(expert.state_dict().items())
            if ".router." in name or _is_gate(name)
        )
        return CheckedExpert(digest=digest, expert=expert.requires_grad_(False).eval(), router=router)

    def install(self, checked: CheckedExpert) -> None:
        """Takes a checked expert in without reading its weights; one of the same digest is replaced."""
        self._experts[checked.digest] = checked.expert
        self._router_digests[checked.digest] = checked.router
        self._poisoned.discard(checked.digest)
        self._panels = None
        self.changes += 1

    def remove(self, digest: str) -> None:
        """Lets an expert go; its mapping ends with the last reference to it.

        Raises:
            ExpertNotResident: it is not here.
        """
        self._resident(digest)
        del self._experts[digest], self._router_digests[digest]
        self._poisoned.discard(digest)
        self._panels = None
        self.changes += 1

    @torch.no_grad()
    def poison(self, digest: str) -> None:
        """Fills every floating tensor of an expert with NaN and keeps it resident, unusable.

        Only this process's private mapping changes. Any later computation that touched the expert would
        show NaN: a standing proof that none does.

        Raises:
            ExpertNotResident: it is not here.
        """
        expert = self._resident(digest)
        fill_with_nan(expert.state_dict().values())
        self._poisoned.add(digest)
        self._panels = None
        self.changes += 1

    def columns(self, experts: Iterable[str]) -> tuple[int, ...]:
        """Columns of the public expert and the given ones in the bank's panels, ascending.

        Valid until an expert is added or removed.

        Raises:
            ExpertNotResident: one of them is not here or was poisoned.
        """
        places = {digest: place for place, digest in enumerate(sorted(self._experts), start=1)}
        wanted = set(experts)
        if missing := sorted(wanted - set(self.digests)):
            raise ExpertNotResident(
                f"{len(missing)} of the experts asked for are not loaded here; load them first.",
                experts=missing,
            )
        return (0, *sorted(places[digest] for digest in wanted))

    def panels(self) -> list[LayerExperts]:
        """What each layer can route to: the public expert, then all residents in canonical order."""
        if self._panels is None:
            with torch.no_grad():
                self._panels = self.decoder.panels(
                    [self._experts[digest] for digest in sorted(self._experts)]
                )
        return self._panels

    def names(self) -> tuple[str, ...]:
        """Names of the panels' columns: ``"public"``, then digests."""
        return (PUBLIC, *sorted(self._experts))

    def state_key(self, experts: Iterable[str], *, top_k: int, consumer: str) -> StateKey:
        """The key of states computed with these experts for one consumer tenant.

        Raises:
            ExpertNotResident: one of them is not here or was poisoned.
        """
        ordered = tuple(sorted(set(experts)))
        self.columns(ordered)
        parts = [self._router_digests[name] for name in (PUBLIC, *ordered)]
        return StateKey(
            base=self.base_digest,
            experts=ordered,
            router="sha256:" + hashlib.sha256("".join(parts).encode()).hexdigest(),
            top_k=top_k,
            dtype=str(self.dtype).removeprefix("torch.") + (f"/{self.ranks}" if self.ranks > 1 else ""),
            consumer=consumer,
        )

    def expert(self, digest: str) -> Expert:
        """A resident expert's weights.

        Raises:
            ExpertNotResident: it is not here, or it was poisoned.
        """
        if digest in self.poisoned:
            raise ExpertNotResident("The expert was withdrawn from this process.", experts=[digest])
        return self._resident(digest)

    def held(self, digest: str) -> Expert:
        """A resident expert's weights, also where they were poisoned (NaN then).

        Raises:
            ExpertNotResident: it is not here.
        """
        return self._resident(digest)

    def _resident(self, digest: str) -> Expert:
        if digest not in self._experts:
            raise ExpertNotResident("The expert is not loaded here; load it first.", experts=[digest])
        return self._experts[digest]

    def _check(self, expert: Expert) -> None:
        widths = {expert.layer(i).router.row.shape[0] for i in range(len(expert.layers))}
        if len(expert.layers) != self.shape.n_layers or widths != {self.shape.d_model}:
            raise BundleWrongShape("The expert's depth or width is not that of the base.", tensors=[])
        if expert.dtype not in (None, self.dtype):
            raise BundleWrongShape("The expert's dtype is not that of the base.", tensors=[])
        if misfit := expert.form.misfit(self.shape.d_ffn):
            raise BundleWrongShape(f"The expert does not fit the base: {misfit}.", tensors=[])
        if rotten := not_finite(expert.state_dict()):
            raise TensorsNotFinite(
                "Weights hold NaN or infinity; train the expert again.", tensors=rotten[:16]
            )


@torch.inference_mode()
def forward_logits(bank: ExpertBank, ids: Sequence[int], experts: Iterable[str], top_k: int) -> Tensor:
    """Logits of one sequence, computed whole and without a cache: a pure function for proofs.

    Depends on the base, the experts named and k alone: what else the bank holds, or has ever held, changes
    no bit (at equal torch build and thread count).

    Args:
        bank: where the weights are.
        ids: token ids, at least one, at most the base's positions.
        experts: bundle digests beside the public expert.
        top_k: experts per token, the public one counted; clamped to their number.

    Returns:
        Logits ``[S, V]``.

    Raises:
        ExpertNotResident: an expert is not here or was poisoned.
    """
    columns = bank.columns(experts)
    ids_1S = torch.tensor([list(ids)], dtype=torch.long)
    plan = plan_uniform(columns, top_k, ids_1S.device, renormalise=bank.shape.renormalise)
    return bank.decoder.logits(bank.decoder.run(ids_1S, bank.panels(), plan))[0]


def _is_gate(name: str) -> bool:
    return ".gate." in name and ".ffn." not in name


def _digest_of(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()
