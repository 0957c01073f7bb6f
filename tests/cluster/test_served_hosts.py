# SPDX-License-Identifier: Apache-2.0
"""The way from the gateway to model hosts through Serve: streams, refusals and cancellation cross it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import HostUnavailable
from cluster.gateway.errors import GenerationFailed
from cluster.hosting.errors import PromptRefused
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.office.protocol import Admission
from model_core.errors import ProductError
from tests.cluster.admissions import admitted

pytestmark = pytest.mark.cluster

BASE = "sha256:" + "ab" * 32
_again: Callable[[], None]


class _Host:
    """A model host that counts, refuses or breaks as the prompt says, and writes down how it ended."""

    def __init__(self, diary: str) -> None:
        from cluster.hosting.lines import Switchboard

        self._diary = Path(diary)
        self._switchboard = Switchboard(self.generate, lambda: 0)

    async def line(self, name: str) -> AsyncGenerator[Any, None]:
        async for frame in self._switchboard.line(name):
            yield frame

    async def begin(self, name: str, stream: str, admission: Admission, request: GenerationRequest) -> None:
        await self._switchboard.begin(name, stream, admission, request)

    async def drop(self, name: str, streams: tuple[str, ...]) -> None:
        self._switchboard.drop(name, streams)

    async def keep(self, name: str) -> None:
        self._switchboard.keep(name)

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        ended = "left"
        try:
            for place in range(request.max_tokens):
                if request.prompt == "who":
                    yield GenerationChunk(text=str(os.getpid()))
                    return
                if request.prompt == "refuse":
                    raise PromptRefused("The prompt does not fit. Shorten it.", limit=3)
                if request.prompt == "break" and place:
                    raise RuntimeError("inner")
                text = os.getpid() if request.prompt == "long" else place
                yield GenerationChunk(token_ids=(place,), text=str(text))
                await asyncio.sleep(0.05)
            ended = "finished"
        finally:
            with self._diary.open("a") as diary:
                diary.write(f"{admission.request_id} {ended}\n")


@pytest.fixture(scope="module")
def diary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small Ray with one scripted host; the file in which it says how its answers ended."""
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from cluster.gateway.deploy import host_application

    # Not below pytest's own folder: the paths of Ray's sockets are bounded, and its folder may be deep.
    temporary = tempfile.mkdtemp(prefix="mkt-")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _temp_dir=temporary,
        _node_ip_address="127.0.0.1",
    )
    serve.start(proxy_location="Disabled")
    path = tmp_path_factory.mktemp("diary") / "diary.txt"
    path.touch()
    router = RequestRouterConfig(request_router_class="cluster.hosting.targeting:TargetedRouter")
    global _again  # noqa: PLW0603
    deployment = serve.deployment(
        num_replicas=2,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        request_router_config=router,
        health_check_period_s=1,
        graceful_shutdown_wait_loop_s=0.05,
        graceful_shutdown_timeout_s=20,
    )(_Host)

    def deploy() -> None:
        serve.run(deployment.bind(str(path)), name=host_application(BASE), route_prefix=None, blocking=False)

    _again = deploy
    deploy()
    yield path
    serve.shutdown()
    ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


def _admission(request_id: str, base_digest: str = BASE) -> Admission:
    return admitted(request_id, base_digest=base_digest, composition_digest=BASE)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def _texts(admission: Admission, request: GenerationRequest) -> list[str]:
    async with _hosts() as hosts:
        return [chunk.text async for chunk in hosts.generate(admission, request)]


@asynccontextmanager
async def _hosts() -> AsyncIterator[Any]:
    from cluster.gateway.deploy import ServedHosts

    hosts = ServedHosts()
    try:
        yield hosts
    finally:
        await hosts.close()


def _ended(diary: Path, request_id: str) -> str:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        for line in diary.read_text().splitlines():
            if line.startswith(f"{request_id} "):
                return line.split()[1]
        time.sleep(0.05)
    return "still running"


def test_answers_stream_through(diary: Path) -> None:
    """Every chunk arrives, in order, and the host finishes."""
    assert _run(_texts(_admission("whole"), GenerationRequest(prompt="x", max_tokens=5))) == list("01234")
    assert _ended(diary, "whole") == "finished"


def test_refusals_cross_as_themselves(diary: Path) -> None:
    """A host's refusal arrives as the class that was raised, with its facts."""
    with pytest.raises(ProductError) as caught:
        _run(_texts(_admission("refused"), GenerationRequest(prompt="refuse", max_tokens=5)))
    assert type(caught.value) is PromptRefused
    assert caught.value.facts == {"limit": 3}


def test_unexpected_errors_do_not_pass_for_refusals(diary: Path) -> None:
    """A fault of the host arrives as an error that is none of ours, so that the door hides its text."""
    with pytest.raises(Exception, match=r"^RuntimeError$") as caught:  # the text stays at the host
        _run(_texts(_admission("broken"), GenerationRequest(prompt="break", max_tokens=5)))
    assert not isinstance(caught.value, ProductError | GenerationFailed)


def test_closing_cancels_at_the_host(diary: Path) -> None:
    """A client that leaves after the first chunk ends the host's work long before its end."""

    async def leave_early() -> str:
        request = GenerationRequest(prompt="x", max_tokens=2000)
        async with _hosts() as hosts:
            stream = hosts.generate(_admission("early"), request)
            first = await anext(stream)
            await stream.aclose()
            await asyncio.to_thread(_ended, diary, "early")
        return first.text

    assert _run(leave_early()) == "0"
    assert _ended(diary, "early") == "left"


def test_base_without_host_is_unavailable(diary: Path) -> None:
    """A base that nobody serves is a refusal that tells to come again."""
    admission = _admission("nowhere", "sha256:" + "cd" * 32)
    with pytest.raises(HostUnavailable) as caught:
        _run(_texts(admission, GenerationRequest(prompt="x", max_tokens=1)))
    assert caught.value.facts["retry_after_s"] >= 1


def test_same_beginnings_meet_at_one_replica_and_others_spread(diary: Path) -> None:
    """Twelve requests that begin alike are answered by one process, twelve that do not by both."""

    async def pids(beginnings: list[str]) -> set[str]:
        from cluster.gateway.deploy import ServedHosts

        hosts, found = ServedHosts(), set()
        fleet = await hosts.fleet(BASE)
        async with asyncio.timeout(20):
            while len(fleet.replicas) < 2:
                await asyncio.sleep(0.02)
        for place, beginning in enumerate(beginnings):
            admission = _admission(f"who-{place}").model_copy(update={"deployment": beginning})
            chunks = hosts.generate(admission, GenerationRequest(prompt="who", max_tokens=1))
            found |= {chunk.text async for chunk in chunks}
        await hosts.close()
        return found

    assert len(_run(pids(["same"] * 12))) == 1
    assert len(_run(pids([f"other {n}" for n in range(12)]))) == 2


def test_killed_replica_ends_its_stream_with_a_loss_and_the_other_goes_on(diary: Path) -> None:
    """SIGKILL in the middle: what came stands, the stream says it is lost, the next request is served."""

    async def story() -> tuple[int, str, list[str]]:
        async with _hosts() as hosts:
            stream = hosts.generate(_admission("killed"), GenerationRequest(prompt="long", max_tokens=2000))
            got = [await anext(stream)]
            os.kill(int(got[0].text), signal.SIGKILL)
            code = ""
            try:
                got.extend([chunk async for chunk in stream])
            except ProductError as error:
                code = error.code
            after = hosts.generate(_admission("after"), GenerationRequest(prompt="x", max_tokens=3))
            return len(got), code, [chunk.text async for chunk in after]

    came, code, after = _run(story())
    assert came >= 1
    assert code == "replica_lost"
    assert after == ["0", "1", "2"]


def test_replaced_replicas_finish_their_streams_and_new_ones_take_what_is_new(diary: Path) -> None:
    """While everything is deployed anew an open stream goes on to its end, and others are answered."""

    async def story() -> tuple[list[str], list[list[str]]]:
        async with _hosts() as hosts:
            stream = hosts.generate(_admission("drained"), GenerationRequest(prompt="x", max_tokens=40))
            got = [(await anext(stream)).text]
            deploying = asyncio.create_task(asyncio.to_thread(_again))
            others = []
            while not deploying.done() or len(others) < 3:
                request = GenerationRequest(prompt=f"y{len(others)}", max_tokens=3)
                chunks = hosts.generate(_admission(f"new-{len(others)}"), request)
                others.append([chunk.text async for chunk in chunks])
            await deploying
            got.extend([chunk.text async for chunk in stream])
            return got, others

    got, others = _run(story())
    assert got == [str(n) for n in range(40)]
    assert all(one == ["0", "1", "2"] for one in others)
    assert _ended(diary, "drained") == "finished"
