# SPDX-License-Identifier: Apache-2.0
"""The compiled library that the tests below share; where nothing can be compiled they are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from model_core.engine.native.compiler import NoLibrary
from model_core.engine.native.library import Library, load_library

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def library(pytestconfig: pytest.Config) -> Library:
    """Kept from run to run, since compiling takes seconds."""
    folder = Path(pytestconfig.rootpath) / "build" / "kernels"
    found = load_library(folder)
    if isinstance(found, NoLibrary):
        pytest.skip(found.reason)
    return found
