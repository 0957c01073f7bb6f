# SPDX-License-Identifier: Apache-2.0
"""Lets the tests below import the builders that they share, and keeps sums of one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model_core.engine.native.compiler import NoLibrary
from model_core.engine.native.library import Library, load_library

sys.path.insert(0, str(Path(__file__).parents[1] / "model_core"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config) -> Library:
    """The compiled kernels, kept from run to run; where nothing can be compiled, their laws are skipped."""
    found = load_library(Path(pytestconfig.rootpath) / "build" / "kernels")
    if isinstance(found, NoLibrary):
        pytest.skip(found.reason)
    return found
