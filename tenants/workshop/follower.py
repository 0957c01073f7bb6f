# SPDX-License-Identifier: Apache-2.0
"""Reads one training child to its end; every rule that the child can break is checked here.

The child is not trusted: its lines are bounded and validated, its talk, time and folder have bounds, and its
files are looked at only after it and everything it started are gone. Knows neither Ray nor the office.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenants.workshop.launch import EnclosedChild
from tenants.workshop.protocol import (
    EXIT_STOPPED,
    MAX_LINE_BYTES,
    MAX_TALK_BYTES,
    ChildEvent,
    DoneEvent,
    ErrorEvent,
    WorkshopProtocolViolated,
    parse_event,
)

_POLL_S = 0.2
_MEASURE_EVERY_S = 5.0
_LAST_BREATH_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChildExit:
    """How an attempt ended.

    Attributes:
        status: exit status; negative signal number when killed.
        done: the child's last word, if it finished and said so.
        error: why it failed: the child's word, or ours about the child.
        stopped: it was asked to stop.
    """

    status: int
    done: DoneEvent | None = None
    error: ErrorEvent | None = None
    stopped: bool = False

    @property
    def succeeded(self) -> bool:
        """True when the child finished, said so and broke no rule."""
        return self.status == 0 and self.done is not None and self.error is None


class Follower:
    """Follows one started child.

    Args:
        child: a started child.
        on_event: called for every valid event, in order.
        should_stop: polled a few times a second; True ends the child after it had time for a checkpoint.
    """

    def __init__(
        self,
        child: EnclosedChild,
        on_event: Callable[[ChildEvent], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._child = child
        self._on_event = on_event
        self._should_stop = should_stop
        self._buffer = b""
        self._talk_bytes = 0
        self._done: DoneEvent | None = None
        self._error: ErrorEvent | None = None
        self._broke_rule = False
        self._started = time.monotonic()
        self._stop_at: float | None = None
        self._next_measure = self._started

    def run(self) -> ChildExit:
        """Follows to the end; the process group is gone when this returns, however it returns."""
        stdout = self._child.process.stdout
        try:
            with selectors.DefaultSelector() as selector:
                if stdout is not None:
                    selector.register(stdout, selectors.EVENT_READ)
                while not self._broke_rule:
                    if selector.select(_POLL_S) and stdout is not None and not self._read(stdout.fileno()):
                        break
                    self._check_rules()
            self._wait_for_exit()
        finally:
            status = self._child.end()
        self._judge(status)
        return ChildExit(status=status, done=self._done, error=self._error, stopped=self._stop_at is not None)

    def _judge(self, status: int) -> None:
        if self._error is not None or self._stop_at is not None:
            return
        if status == 0 and self._done is None:
            self._error = ErrorEvent(code="no_result", sentence="The child ended without a result.")
        elif status != 0:
            # A stop nobody asked for (a node that drains) and a death by signal both deserve another attempt.
            retry = status == EXIT_STOPPED or status < 0
            sentence = f"The training child ended with status {status}."
            self._error = ErrorEvent(code="child_died", sentence=sentence, retry=retry)

    def _wait_for_exit(self) -> None:
        try:
            self._child.process.wait(timeout=_LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            self._breaks("child_hangs", "The child closed its pipe and did not end.")

    def _read(self, descriptor: int) -> bool:
        data = os.read(descriptor, 65536)
        self._talk_bytes += len(data)
        if self._talk_bytes > MAX_TALK_BYTES:
            self._breaks("child_talks_too_much", "The child said more than one attempt may say.")
            return False
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                self._take(parse_event(line))
            if len(self._buffer) > MAX_LINE_BYTES:
                parse_event(self._buffer)
        except WorkshopProtocolViolated as err:
            self._breaks(err.code, err.sentence)
            return False
        return bool(data)

    def _take(self, event: ChildEvent) -> None:
        if self._done is not None:
            raise WorkshopProtocolViolated("The training child went on after it said that it was done.")
        if isinstance(event, DoneEvent):
            self._done = event
        elif isinstance(event, ErrorEvent):
            self._error = event
        self._on_event(event)

    def _check_rules(self) -> None:
        now = time.monotonic()
        bounds = self._child.order.bounds
        if self._stop_at is None:
            if self._should_stop():
                self._stop_at = now + bounds.stop_grace_s
                self._child.signal(signal.SIGTERM)
        elif now > self._stop_at:
            self._child.signal(signal.SIGKILL)
        if bounds.seconds is not None and now - self._started > bounds.seconds:
            self._breaks("time_bound", "The attempt exceeded its time bound.")
        if now >= self._next_measure:
            self._next_measure = now + _MEASURE_EVERY_S
            size_bytes = sum(folder_bytes(folder) for folder in self._child.order.writable)
            if size_bytes > bounds.folder_bytes:
                self._breaks("disk_bound", "The work folder exceeded its bound.")

    def _breaks(self, code: str, sentence: str) -> None:
        self._broke_rule = True
        self._done = None
        self._error = ErrorEvent(code=code, sentence=sentence)
        self._child.signal(signal.SIGKILL)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; links are not followed."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
