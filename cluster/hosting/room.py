# SPDX-License-Identifier: Apache-2.0
"""The engine room: one thread that owns engine and bank, and the moments between two steps.

Everything that touches tensors runs here, as commands between steps or as a step. A step counts only if the
gate is open when it ends; otherwise it is discarded and computed again later, so that no state and no token
of a step without a valid lease remains. The room knows rosters, not how they are made, and no office.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from cluster.hosting.choice import Choice, Ending, Failure, Label, StepToken
from cluster.hosting.endings import ended
from cluster.hosting.errors import DeploymentNotHosted, ExpertsNotLoaded, HostStopping, RequestStopped
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.plan import EMPTY_ROSTER, NewSet, Plan, Roster, Running, make_plan
from model_core.engine.engine import Engine
from model_core.engine.requests import SequenceRequest
from model_core.engine.runner import Runner
from model_core.errors import ProductError, RankLost, TensorsNotFinite
from model_core.network.bank import CheckedExpert, ExpertBank
from model_core.network.expert import Expert

log = logging.getLogger(__name__)

T = TypeVar("T")
_IDLE_WAIT_S = 0.5
_HELD_WAIT_S = 0.02
# A request is stopped while its reservation is open, which is for an hour at most.
_MOST_STOPPED = 10_000


@dataclass(kw_only=True, slots=True)
class RoomCounts:
    """What the room has done.

    Attributes:
        steps: steps whose result was released to the streams.
        discarded: steps that ended with the gate closed.
        recomposed: sequences whose set changed.
        restarted: sequences that were computed again from their last released token.
    """

    steps: int = 0
    discarded: int = 0
    recomposed: int = 0
    restarted: int = 0


class EngineRoom:
    """Owns the engine on one thread.

    Args:
        bank: base and experts.
        gate: asked before and after every step.
        max_sequences: sequences computed at the same time.
        max_context: longest prompt plus completion.
        threads: compute threads.
        keep_poisoned: withdrawn experts stay resident, filled with NaN, as a standing proof that nothing
            multiplies them.
        max_waiting: sequences that may wait besides.
        runner: computes the steps; None lets torch do it. It has ``max_sequences`` places.
    """

    def __init__(
        self,
        bank: ExpertBank,
        gate: ReleaseGate,
        *,
        max_sequences: int = 32,
        max_context: int = 512,
        threads: int = 1,
        keep_poisoned: bool = False,
        max_waiting: int = 256,
        runner: Runner | None = None,
    ) -> None:
        self.bank = bank
        # Whoever is computing may have to queue again, so the engine takes that many more than may wait.
        self.engine = Engine(
            bank,
            max_sequences=max_sequences,
            max_context=max_context,
            max_waiting=max_waiting + max_sequences,
            runner=runner,
        )
        self.counts = RoomCounts()
        self.failure: BaseException | None = None
        self._lost: RankLost | None = None
        self._gate = gate
        self._threads = threads
        self._keep_poisoned = keep_poisoned
        self._roster: Roster = EMPTY_ROSTER
        self._choices: dict[str, Choice] = {}
        self._stopped: dict[str, str] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-room", daemon=True)

    # ── from any thread ───────────────────────────────────────────────────────────────────────────────
    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step; running choices fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=30)

    def call(self, command: Callable[[], T]) -> Future[T]:
        """Runs something on the engine's thread between two steps."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(command())
            except Exception as err:
                if isinstance(err, RankLost):
                    self._lost = err
                future.set_exception(err)

        with self._wake:
            if self._stopping or self.failure is not None:
                future.set_exception(HostStopping("The model host is ending; ask again in a few seconds."))
                return future
            self._commands.append(work)
            self._wake.notify()
        return future

    def prepare(self, digest: str, expert: Expert) -> CheckedExpert:
        """Checks a loaded expert and derives what its first step needs, while the engine goes on stepping."""
        return self.engine.prepare_expert(digest, expert)

    @property
    def roster(self) -> Roster:
        """The roster in force."""
        return self._roster

    # ── on the engine's thread, through call() ────────────────────────────────────────────────────────
    def submit(self, choice: Choice) -> None:
        """Starts a choice under its deployment's present composition.

        Raises:
            RequestStopped: the register stopped the request.
            DeploymentNotHosted: the deployment is gone or nothing may answer for it.
            ExpertsNotLoaded: some of its experts are not resident yet.
        """
        served = self._roster.served.get(choice.deployment)
        self.check_going(choice.name)
        if served is None or not served.allowed:
            raise DeploymentNotHosted(
                "This deployment is not served at present; look at its reasons before asking again.",
                deployment=choice.deployment,
                epoch=self._roster.epoch,
            )
        if missing := set(served.experts) - set(self.bank.digests):
            raise ExpertsNotLoaded("Experts of this deployment are being loaded.", missing=len(missing))
        choice.set = NewSet(
            experts=served.experts, top_k=served.top_k, composition_digest=served.composition_digest
        )
        choice.epoch = self._roster.epoch
        self._start(choice)
        self._choices[choice.name] = choice

    def stop_requests(self, stopped: Mapping[str, str]) -> None:
        """Ends requests: when this returns, nothing of them is computed or released any more.

        Args:
            stopped: request id to cause; ids are never used again, so what is stopped stays so.
        """
        for request_id, cause in stopped.items():
            self._stopped.setdefault(request_id, cause)
        while len(self._stopped) > _MOST_STOPPED:
            self._stopped.pop(next(iter(self._stopped)))
        for choice in list(self._choices.values()):
            cause = stopped.get(_request_of(choice.name), "")
            if cause:
                self._end(choice, Ending(reason="stopped", cause=cause))

    def check_going(self, name: str) -> None:
        """Refuses what belongs to a stopped request; ``name`` is the request's or one of its choices'.

        Raises:
            RequestStopped: the register stopped it.
        """
        cause = self._stopped.get(_request_of(name))
        if cause is not None:
            raise RequestStopped(ended(cause).sentence, cause=cause)

    def leave(self, choice: Choice) -> None:
        """Forgets a choice, whatever its state."""
        self._choices.pop(choice.name, None)
        if not choice.finished and choice.engine_id in self.engine.request_ids:
            self.engine.cancel(choice.engine_id)

    def apply(self, roster: Roster) -> Plan:
        """Makes a roster the one in force: mask first, drop states, then drop weights.

        When this returns no running sequence uses an expert that the roster does not permit, no computed
        but unreleased token of such a sequence can be released, and experts that nobody may use are gone.
        """
        self._roster = roster
        running = [
            Running(key=name, deployment=c.deployment, experts=c.set.experts, top_k=c.set.top_k)
            for name, c in self._choices.items()
            if c.set is not None
        ]
        plan = make_plan(roster, self.bank.digests, running)
        for name in plan.end:
            closed = self._choices[name].deployment not in roster.served
            cause = "deployment_closed" if closed else "deployment_denied"
            self._end(self._choices[name], Ending(reason="withdrawn", cause=cause))
        for name, new_set in plan.recompose.items():
            self._change(self._choices[name], new_set)
        for choice in self._choices.values():
            served = roster.served.get(choice.deployment)
            digest = choice.set.composition_digest if choice.set else None
            if served is not None and served.composition_digest == digest:
                choice.epoch = roster.epoch
        for digest in plan.drop:
            self._drop(digest)
        self._gate.expire_at(roster.expires_at_us)
        return plan

    def install(self, checked: CheckedExpert) -> bool:
        """Takes a prepared expert in, unless it is no longer permitted or here already; says if it did."""
        if checked.digest not in self._roster.experts or checked.digest in self.bank.digests:
            return False
        self.engine.add_expert(checked)
        return True

    def in_use(self) -> frozenset[str]:
        """Experts that some choice is computed with, or will be when its turn comes."""
        return frozenset(digest for one in self._choices.values() if one.set for digest in one.set.experts)

    def evict(self, digests: Collection[str]) -> tuple[str, ...]:
        """Lets permitted experts go to make room, but those in use; says which have left."""
        gone = tuple(sorted(set(digests) & set(self.bank.digests) - self.in_use()))
        for digest in gone:
            self.engine.drop_expert(digest, poison=False)
        return gone

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _start(self, choice: Choice) -> None:
        if choice.set is None:
            raise DeploymentNotHosted("The choice has no composition.", deployment=choice.deployment)
        key = self.bank.state_key(choice.set.experts, top_k=choice.set.top_k, consumer=choice.consumer)
        released = len(choice.released_ids)
        sampling = replace(choice.sampling, max_tokens=choice.sampling.max_tokens - released)
        choice.finished = False
        choice.computed = released
        self.engine.submit(
            SequenceRequest(
                request_id=choice.engine_id,
                prompt_ids=(*choice.prompt_ids, *choice.released_ids),
                experts=choice.set.experts,
                top_k=choice.set.top_k,
                state_key=key,
                sampling=sampling,
                n_said=released,
            )
        )

    def _change(self, choice: Choice, new_set: NewSet) -> None:
        with choice.mutex:
            # Whatever was computed so far and has not left yet is void from here on.
            choice.generation += 1
            unreleased = choice.computed - len(choice.released_ids)
        choice.set, choice.epoch = new_set, self._roster.epoch
        self.counts.recomposed += 1
        if unreleased:
            # The sequence goes back to its last released token.
            if not choice.finished:
                self.engine.cancel(choice.engine_id)
            choice.run += 1
            self.counts.restarted += 1
            self._start(choice)
        elif not choice.finished:
            key = self.bank.state_key(new_set.experts, top_k=new_set.top_k, consumer=choice.consumer)
            self.engine.recompose(choice.engine_id, new_set.experts, key)

    def _end(self, choice: Choice, ending: Ending) -> None:
        with choice.mutex:
            choice.generation += 1
        del self._choices[choice.name]
        if not choice.finished:
            self.engine.cancel(choice.engine_id)
        choice.finished = True
        choice.notify(choice, ending)

    def _drop(self, digest: str) -> None:
        if self._keep_poisoned:
            self.engine.drop_expert(digest, poison=True)
            return
        # NaN first: whoever still held the tensors would show it at once.
        self.engine.drop_expert(digest, poison=True)
        self.engine.drop_expert(digest, poison=False)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            while self._turn():
                pass
            self._fail_all(HostStopping("The model host is ending; ask again in a few seconds."))
        except BaseException as err:
            log.exception("the engine room failed")
            self.failure = err
            self._fail_all(HostStopping("The model host failed and is being replaced; ask again."))

    def _turn(self) -> bool:
        opened = self._gate.is_open()
        with self._wake:
            if not self._commands and not self._stopping and (self.engine.idle or not opened):
                self._wake.wait(_IDLE_WAIT_S if self.engine.idle else _HELD_WAIT_S)
            if self._stopping:
                return False  # commands that wait are answered on the way out
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        if self._lost is not None:
            raise self._lost  # nothing can be computed here any more, nor be said to be gone
        if not self.engine.idle and self._gate.is_open():
            self._step()
        return True

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except TensorsNotFinite as err:
            self.engine.discard()
            for engine_id in err.facts.get("request_ids", ()):
                self._fail(self._choices[engine_id.rpartition("#")[0]], err)
            return
        if not self._gate.is_open():
            self.engine.discard()
            self.counts.discarded += 1
            return
        self.engine.commit()
        self.counts.steps += 1
        for event in events:
            choice = self._choices[event.request_id.rpartition("#")[0]]
            digest = choice.set.composition_digest if choice.set is not None else ""
            choice.computed += 1
            choice.finished = event.finished is not None
            label = Label(epoch=choice.epoch, composition_digest=digest)
            choice.notify(choice, StepToken(generation=choice.generation, label=label, event=event))

    def _fail(self, choice: Choice, error: ProductError) -> None:
        self.leave(choice)
        choice.finished = True
        choice.notify(choice, Failure(error=error))

    def _fail_all(self, error: ProductError) -> None:
        with self._wake:
            self._stopping = True
            commands = list(self._commands)
            self._commands.clear()
        for choice in list(self._choices.values()):
            choice.notify(choice, Failure(error=error))
        for command in commands:
            command()


def _request_of(name: str) -> str:
    """The request that a choice belongs to."""
    return name.partition("/")[0]
