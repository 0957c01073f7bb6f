# SPDX-License-Identifier: Apache-2.0
"""A snapshot compiled for servers that ask who serves, and not why."""

from policy.compiled.composer import Compiled, Composed, compile_snapshot

__all__ = ["Compiled", "Composed", "compile_snapshot"]
