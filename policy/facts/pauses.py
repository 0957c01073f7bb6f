# SPDX-License-Identifier: Apache-2.0
"""Keeps Python from searching for garbage while very many values come that all stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_cycles_sought() -> Iterator[None]:
    """Pauses the collector of cycles, which would look through every value again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
