# SPDX-License-Identifier: Apache-2.0
"""What the collector of cycles need not look at again: all that a process holds once it is up."""

from __future__ import annotations

import gc


def spare_what_is_here() -> None:
    """Takes everything that is alive now out of later collections.

    A process that has loaded Ray, torch and a web framework holds a million objects that live as long as it
    does. A full collection walks all of them and holds the interpreter meanwhile: every stream waits.
    """
    gc.collect()
    gc.freeze()
