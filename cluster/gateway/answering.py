# SPDX-License-Identifier: Apache-2.0
"""The generations behind one HTTP request: one per prompt, begun together, read as one, ended together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from cluster.gateway.door import Door
from cluster.gateway.generation import Generation
from cluster.gateway.openai_requests import tokens_to_hold
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission

_Told = tuple[int, GenerationChunk] | Exception | None


class Answers:
    """What one HTTP request asks for.

    Args:
        door: whose places they take.
        credential: the caller's.
        deployment: the model that was named.
        request_id: the door's name of the HTTP request, for the log.

    Attributes:
        admissions: one per prompt.
    """

    def __init__(self, door: Door, credential: str, deployment: str, request_id: str) -> None:
        self._door = door
        self._credential = credential
        self._deployment = deployment
        self._request_id = request_id
        self._generations: list[Generation] = []
        self.admissions: list[Admission] = []

    @property
    def exact(self) -> bool:
        """Whether no bit of any answer depends on what is computed beside it."""
        return all(generation.exact for generation in self._generations)

    async def admit(self, prompts: Sequence[GenerationRequest]) -> None:
        """Holds the budget of every prompt; do not cancel it, or a hold may stay until it expires.

        Raises:
            ProductError: one of them was refused; ``close`` what was admitted.
        """
        for prompt in prompts:
            self._door.take_place()
            try:
                admission = await self._door.office.admit_request(
                    self._credential, self._deployment, tokens_to_hold(prompt)
                )
            except BaseException:
                self._door.free_place()
                raise
            self.admissions.append(admission)
            self._generations.append(
                Generation(self._door, self._credential, admission, prompt, self._request_id)
            )

    async def start(self) -> None:
        """Waits for the first chunk of every prompt, so that refusals of hosts still become a status.

        Raises:
            ProductError: one of them was refused; ``close`` the others.
        """
        if len(self._generations) == 1:
            await self._generations[0].start()
        else:
            await _all(self._generations)

    async def chunks(self) -> AsyncIterator[tuple[int, GenerationChunk]]:
        """Every chunk with the number of its prompt, in the order in which they come."""
        if len(self._generations) == 1:
            async for chunk in self._generations[0].chunks():
                yield 0, chunk
            return
        came: asyncio.Queue[_Told] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_pump(number, generation, came))
            for number, generation in enumerate(self._generations)
        ]
        try:
            left = len(tasks)
            while left:
                item = await came.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Ends every generation and frees the budget of those that no host began; safe to call again."""
        for generation in self._generations:
            await generation.close()


async def _all(generations: Sequence[Generation]) -> None:
    starting = [asyncio.create_task(generation.start()) for generation in generations]
    try:
        await asyncio.gather(*starting)
    finally:
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)


async def _pump(number: int, generation: Generation, came: asyncio.Queue[_Told]) -> None:
    try:
        async for chunk in generation.chunks():
            came.put_nowait((number, chunk))
    except Exception as error:
        came.put_nowait(error)
    else:
        came.put_nowait(None)
