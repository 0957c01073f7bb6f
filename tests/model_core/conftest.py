# SPDX-License-Identifier: Apache-2.0
"""Lets the tests below import the builders that they share, and keeps sums of one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass
