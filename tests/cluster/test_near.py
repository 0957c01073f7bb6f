# SPDX-License-Identifier: Apache-2.0
"""A host's own door: answered here while there is room, over there otherwise, and closed either way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.hosting.errors import HostOverloaded, PromptRefused
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.hosting.near import NearHosts
from cluster.office.protocol import Admission
from model_core.errors import ProductError
from tests.cluster.admissions import admitted


class Place:
    """Somewhere that answers with its name, or refuses."""

    def __init__(self, name: str, refuses: ProductError | None = None) -> None:
        self.base_digest = "here"
        self.gate = SimpleNamespace(sealed=False)
        self.name = name
        self.refuses = refuses
        self.closed = 0

    async def generate(
        self, _admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Its name, again and again."""
        try:
            if self.refuses is not None:
                raise self.refuses
            for _ in range(request.max_tokens):
                yield GenerationChunk(text=self.name)
        finally:
            self.closed += 1

    async def score(self, *_: Any) -> str:
        """Its name."""
        return self.name

    probe = score


def _said(here: Place, there: Place, base: str = "here") -> list[str]:
    async def story() -> list[str]:
        admission = admitted(base_digest=base, reserved_tokens=9)
        hosts: Any = NearHosts(here, there)  # type: ignore[arg-type]
        asked = GenerationRequest(prompt="x", max_tokens=2)
        said = [chunk.text async for chunk in hosts.generate(admission, asked)]
        return [*said, await hosts.score(base, "d", (), None), await hosts.probe(base, "d", "x")]

    return asyncio.run(story())


def test_answers_come_from_here_while_there_is_room() -> None:
    """Nothing goes elsewhere."""
    here, there = Place("here"), Place("there")
    assert _said(here, there) == ["here"] * 4
    assert (here.closed, there.closed) == (1, 0)


def test_full_house_other_base_and_end_send_answers_elsewhere() -> None:
    """What cannot be computed here is computed by others, unnoticed."""
    full = Place("here", HostOverloaded("Busy."))
    assert _said(full, Place("there"))[:2] == ["there"] * 2
    assert _said(Place("here"), Place("there"), "other") == ["there"] * 4
    ending = Place("here")
    ending.gate.sealed = True
    assert _said(ending, Place("there"))[:2] == ["there"] * 2


def test_refusals_from_here_stand() -> None:
    """A prompt that does not fit fits nowhere."""
    there = Place("there")
    with pytest.raises(PromptRefused):
        _said(Place("here", PromptRefused("Too long.")), there)
    assert there.closed == 0
