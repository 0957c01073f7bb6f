# SPDX-License-Identifier: Apache-2.0
"""Model hosts with a witness inside, and a reconciler that starts those instead of plain ones.

A play starts its marketplace with this reconciler (``examples.storm.up``); nothing of the product knows of
it. What a host shall do besides is read from a file in the installation's home, so that it reaches replicas
that Serve starts later as well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cluster.hosting.host as hosting
from cluster.errors import OfficeUnavailable
from cluster.hosting.host import ModelHost
from cluster.hosting.reconciler import Reconciler

ORDERS_FILE = "storm.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """What is played with the hosts.

    Attributes:
        record: folder of the recorder's files.
        forget_mask: hosts that hear of a withdrawal acknowledge it and go on as before: what the judge must
            notice.
        pace_s: from one step's beginning to the next pass at least so many seconds, while ``pace_file`` is
            there; what the engine's thread is asked meanwhile it does at once.
    """

    record: str
    forget_mask: bool = False
    pace_s: float = 0.0

    def save(self, home: Path) -> None:
        """Writes them down for hosts that start from now on."""
        (home / ORDERS_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, home: Path) -> Orders:
        """Reads what ``save`` wrote."""
        return cls(**json.loads((home / ORDERS_FILE).read_text()))


class WatchedHost(ModelHost):
    """A model host whose matrix products are recorded and whose line to the office can be cut."""

    async def __init__(self, settings: dict[str, Any], base_digest: str) -> None:  # type: ignore[misc]
        from examples.storm.recorder import Recorder

        home = Path(settings["home"])
        orders = Orders.load(home)
        Recorder(Path(orders.record)).install()
        connect = hosting.connect_office
        hosting.connect_office = lambda **named: Cord(connect(**named), home)  # type: ignore[assignment, return-value]
        if orders.forget_mask:
            forget_masks()
        if orders.pace_s:
            pace_steps(orders.pace_s, pace_file(home))
        await super().__init__(settings, base_digest)


class Cord:
    """The line to the office; while a file with this process's number lies in the home, nothing passes.

    Args:
        office: at the other end.
        home: of the installation.
    """

    def __init__(self, office: Any, home: Path) -> None:
        self._office, self._file = office, cut_file(home, os.getpid())

    def __getattr__(self, name: str) -> Any:
        question = getattr(self._office, name)
        if not callable(question):
            return question
        return self._passing(question)

    def _passing(self, question: Callable[..., Any]) -> Callable[..., Any]:
        async def ask(*arguments: Any, **named: Any) -> Any:
            if self._file.exists():
                raise OfficeUnavailable("The network is down.")
            answer = await question(*arguments, **named)
            if self._file.exists():
                raise OfficeUnavailable("The network went down.")
            return answer

        return ask


def cut_file(home: Path, pid: int) -> Path:
    """The file that cuts a host process off while it is there."""
    return home / f"cut-{pid}"


def pace_file(home: Path) -> Path:
    """The file that makes hosts keep their pace while it is there."""
    return home / "paced"


def pace_steps(pace_s: float, file: Path) -> None:
    """Lets engines of this process take their time as those of a larger base do, without the work.

    Args:
        pace_s: from one step's beginning to the next one's.
        file: only while it is there.
    """
    from cluster.hosting.room import EngineRoom

    step = EngineRoom._step
    next_s = 0.0

    def paced(room: EngineRoom) -> None:
        nonlocal next_s
        left_s = next_s - time.monotonic()
        if left_s > 0 and file.exists():
            with room._wake:
                if not room._commands and not room._stopping:
                    room._wake.wait(left_s)
            return
        next_s = time.monotonic() + pace_s
        step(room)

    EngineRoom._step = paced  # type: ignore[method-assign, assignment]


def forget_masks() -> Callable[[], None]:
    """Makes engines of this process keep running sequences on experts that were withdrawn.

    Returns:
        What puts it right again.
    """
    from cluster.hosting.room import EngineRoom

    change, drop = EngineRoom._change, EngineRoom._drop
    EngineRoom._change = lambda *_: None  # type: ignore[method-assign]
    EngineRoom._drop = lambda *_: None  # type: ignore[method-assign]

    def restore() -> None:
        EngineRoom._change, EngineRoom._drop = change, drop  # type: ignore[method-assign]

    return restore


class WatchedReconciler(Reconciler):
    """Starts watched hosts.

    Args:
        settings: the operator's choices, as a document.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        hosting.ModelHost = WatchedHost  # type: ignore[misc]
        super().__init__(settings)
