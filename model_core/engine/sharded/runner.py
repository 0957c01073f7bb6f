# SPDX-License-Identifier: Apache-2.0
"""Steps over one bank whose arithmetic is done by the ranks of a gang (see ``engine.runner.Runner``).

The engine's process keeps the bank, the schedule, sampling and everything about time; ranks get pieces and
give logits and shares back. Their parts of base and experts are files, made once per machine and mapped. What
changes memory that others may see (experts, erased pages) returns when every rank has done it; what matters
to the next step only (tails) travels with that step. It does not know how ranks compute.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model_core.engine.native.derived import DerivedFile, DerivedFolder
from model_core.engine.native.footprint import release_file_pages
from model_core.engine.runner import Piece, StepResult
from model_core.engine.sharded.gang import Gang
from model_core.engine.sharded.slices import Part, base_slices, check_ranks, expert_slices
from model_core.engine.sharded.wire import Message
from model_core.errors import RankLost
from model_core.network.bank import ExpertBank
from model_core.network.expert import Expert

# Large parts may have to be read from a slow disk, or be copied to a device, once.
_OPEN_S = 600.0


class ShardedRunner:
    """Steps by several processes (see ``runner.Runner``).

    Args:
        bank: weights; read where a rank's part is not in a file yet.
        gang: the ranks; they compute for this runner alone from now on.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        page_size: positions in a page.
        folder: where parts are kept for all processes of the machine; None keeps them with the gang.
        deterministic: prefer slower steps in which no row depends on another, where the ranks' kernels allow.

    Raises:
        RanksRefused: the base cannot be spread over so many ranks.
        RankLost: a rank has ended, failed or not answered.
    """

    def __init__(
        self,
        bank: ExpertBank,
        gang: Gang,
        *,
        n_pages: int,
        n_tails: int,
        page_size: int = 16,
        folder: Path | None = None,
        deterministic: bool = False,
    ) -> None:
        check_ranks(bank.shape, gang.size)
        self.page_size, self.n_pages, self.n_tails = page_size, n_pages, n_tails
        self.row_exact = False
        self.bank = bank
        bank.ranks = gang.size
        self._gang = gang
        self._parts = [Part(rank=rank, n_ranks=gang.size) for rank in range(gang.size)]
        own = DerivedFolder(gang.folder / "parts") if gang.folder is not None else None
        self._folders = [DerivedFolder(folder), own] if folder is not None else [own]
        self._files: dict[str, list[DerivedFile]] = {}
        self._filing = threading.Lock()
        self._held: dict[str, bool] = {}  # by digest: whether the ranks' copies are poisoned
        self._before: list[dict[str, Any]] = []
        self._size_bytes = 0
        source = bank.decoder.state_dict()
        opening = {
            "do": "open",
            "base": bank.base_digest,
            "shape": bank.shape.model_dump(),
            "deterministic": deterministic,
            "n_pages": n_pages,
            "n_tails": n_tails,
            "page_size": page_size,
        }
        files = self._made(bank.base_digest, source, partial(base_slices, bank.decoder))
        told = [opening | {"file": _told(file)} for file in files]
        self._note(gang.ask_each(told, patience_s=_OPEN_S))
        self.refresh()

    def run(self, pieces: Sequence[Piece]) -> StepResult:
        """Computes pieces in one batch; nothing counts until ``keep``.

        Raises:
            RankLost: a rank has ended, failed, not answered, or chose other experts than the others.
        """
        told = [asdict(piece) for piece in pieces]
        answers = self._ask({"do": "step", "pieces": [_plain(piece) for piece in told]})
        checks = {answer.document["check"] for answer in answers}
        if len(checks) > 1:
            self._gang.close()
            raise RankLost(
                "The processes that compute this base do not agree; start the host anew, on equal devices.",
                n_ranks=self._gang.size,
            )
        logits_BV = torch.cat([answer.tensors[0] for answer in answers], dim=-1)
        return StepResult(logits_BV=logits_BV, shares_BE=answers[0].tensors[1])

    def keep(self, tails: Sequence[tuple[int, int]]) -> None:
        """Makes prefix sums of the last step count, before anything else is computed."""
        self._before.append({"do": "keep", "tails": [list(pair) for pair in tails]})

    def begin(self, tail: int, page: int | None) -> None:
        """Sets a tail to the prefix sums at the end of a full page, or to zero (None)."""
        self._before.append({"do": "begin", "tail": tail, "page": page})

    def erase(self, pages: Sequence[int], tails: Sequence[int] = ()) -> None:
        """Overwrites pages and tails on every rank.

        Raises:
            RankLost: a rank has ended, failed or not answered.
        """
        self._ask({"do": "erase", "pages": list(pages), "tails": list(tails)})

    def prepare(self, digest: str, expert: Expert) -> None:
        """Makes the files of the ranks' parts of an expert; any thread may call it while steps run."""
        self._parts_of(digest, expert)

    def refresh(self) -> None:
        """Takes over what the bank holds now; returns when every rank has.

        Raises:
            RankLost: a rank has ended, failed or not answered.
        """
        usable, poisoned = self.bank.digests, self.bank.poisoned
        drop = [name for name in self._held if name not in (*usable, *poisoned)]
        # An expert that was poisoned and came again has fresh weights.
        drop += [name for name in usable if self._held.get(name)]
        kept = self._held.keys() - set(drop)
        load = [self._loading(name) for name in usable if name not in kept]
        load += [self._hollow(name) for name in poisoned if name not in kept]
        poison = [name for name in poisoned if not self._held.get(name)]
        documents = [
            {"do": "refresh", "drop": drop, "load": [one[part.rank] for one in load], "poison": poison}
            for part in self._parts
        ]
        self._note(self._gang.ask_each(documents))
        self._held = dict.fromkeys(usable, False) | dict.fromkeys(poisoned, True)
        with self._filing:
            for name in drop:
                self._files.pop(name, None)

    def size_bytes(self) -> int:
        """Memory of pages and tails on all ranks, as of the last answer."""
        return self._size_bytes

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _ask(self, document: dict[str, Any]) -> list[Message]:
        before, self._before = self._before, []
        answers = self._gang.ask(document | {"before": before})
        self._note(answers)
        return answers

    def _note(self, answers: Sequence[Message]) -> None:
        self.row_exact = all(answer.document["row_exact"] for answer in answers)
        self._size_bytes = sum(answer.document["size_bytes"] for answer in answers)

    def _loading(self, digest: str) -> list[dict[str, Any]]:
        """What each rank is told of an expert that comes."""
        expert = self.bank.expert(digest)
        return [_coming(digest, expert) | {"file": _told(file)} for file in self._parts_of(digest, expert)]

    def _hollow(self, digest: str) -> list[dict[str, Any]]:
        """The same of one that was poisoned before ranks ever had it: a place without weights."""
        return [_coming(digest, self.bank.held(digest)) | {"file": None} for _ in self._parts]

    def _parts_of(self, digest: str, expert: Expert) -> list[DerivedFile]:
        with self._filing:
            known = self._files.get(digest)
            # What was prepared and then not taken in may have been cleared away since.
            if known is None or not all(file.path.exists() for file in known):
                self._files[digest] = self._made(digest, expert.state_dict(), partial(expert_slices, expert))
            return self._files[digest]

    def _made(self, digest: str, source: dict[str, torch.Tensor], cut: Any) -> list[DerivedFile]:
        """The files of all ranks' parts, in the first folder that can keep them."""
        files = [self._file(digest, source, cut, part) for part in self._parts]
        release_file_pages(source.values())
        return files

    def _file(self, digest: str, source: dict[str, torch.Tensor], cut: Any, part: Part) -> DerivedFile:
        what = f"part{part.rank}of{part.n_ranks}"
        for folder in self._folders:
            made = (
                None
                if folder is None
                else folder.tensors(what, digest, source, lambda: tuple(cut(part).items()))
            )
            if made is not None:
                return made
        self._gang.close()
        raise RankLost(
            "The parts of weights cannot be kept in files here; make room and start the host anew."
        )


def _coming(digest: str, expert: Expert) -> dict[str, Any]:
    return {"digest": digest, "form": asdict(expert.form), "gated": expert.gated}


def _told(file: DerivedFile) -> dict[str, str]:
    return {"path": str(file.path), "name": file.name, "fingerprint": file.fingerprint}


def _plain(piece: dict[str, Any]) -> dict[str, Any]:
    """A piece as JSON writes it, whatever sequences of numbers it holds."""
    return piece | {name: [int(one) for one in piece[name]] for name in ("ids", "pages", "columns")}
