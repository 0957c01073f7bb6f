# SPDX-License-Identifier: Apache-2.0
"""Shares the whole suite between two processes; whoever names tests to run gets one, which speaks at once.

What starts a real marketplace or drives a browser stays in one of the two processes, one after the other, for
such a test is several busy processes by itself. Knows nothing of what the tests are about.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

_ROOT = Path(__file__).parents[1]
_ALONE = ("pytest.mark.cluster", "pytest.mark.chaos", "pytest.mark.browser")
_TOGETHER = "one after the other"
# Given out last it would leave the other process without work for a minute.
_LONGEST = "tests/oracles/test_oracles.py"


@functools.cache
def starts_much(path: str) -> bool:
    """Whether a file of tests marks any of them as one that starts a marketplace or a browser."""
    text = (_ROOT / path).read_text(encoding="utf-8")
    return any(mark in text for mark in _ALONE)


class Sharing(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
    """Gives out files in their random order; before them those that start much, as one, and the longest."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return _TOGETHER if starts_much(path) else path

    def _assign_work_unit(self, node: object) -> None:
        for scope in (_LONGEST, _TOGETHER):
            if scope in self.workqueue:
                self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two for folders of tests; none, so that they run in this process, if files or tests were named."""
    return 2 if all(Path(argument).is_dir() for argument in config.args) else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    """The order in which the suite is given out."""
    config.option.loadscopereorder = False  # else the longest files come first, and no longer in random order
    return Sharing(config, log)
