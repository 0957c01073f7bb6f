# SPDX-License-Identifier: Apache-2.0
"""What a process that holds prompts leaves behind when it ends by a fault: nothing."""

from __future__ import annotations

import resource


def leave_no_core() -> None:
    """From here on the kernel writes this process's memory nowhere: prompts and weights lie in it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # 1 and not 0: where cores are handed to a program, the kernel hands it none for this limit alone.
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
