# SPDX-License-Identifier: Apache-2.0
"""How plays begin and end: a fresh folder, a table of figures, and whether every promise held."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from examples.demo.house import HouseFailed
from examples.storm.judge import Verdict
from examples.storm.play import PlayFailed
from examples.storm.streams import Refused
from model_core.errors import ProductError


class Play(Protocol):
    """What is played."""

    verdict: Verdict

    def run(self) -> None:
        """Founds, plays, takes down and judges."""
        ...


def perform(folder: Path, make: Callable[[], Play], *, held: str) -> tuple[int, Verdict | None]:
    """Plays in an emptied folder and prints what was found.

    Args:
        folder: where everything happens.
        make: makes the play.
        held: what to say if every promise held.

    Returns:
        Exit status, and the verdict unless the play itself failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    play = make()
    try:
        play.run()
    except (PlayFailed, HouseFailed, ProductError, Refused, httpx.HTTPError) as error:
        print(f"\n{type(error).__name__}: {error}", flush=True)
        return 1, None
    print()
    for what, number in play.verdict.figures.items():
        print(f"  {what:<48} {number:>14,.0f}")
    broken = play.verdict.broken
    print("\n".join(["", "A promise does not hold:", *broken] if broken else ["", held]))
    return int(bool(broken)), play.verdict
