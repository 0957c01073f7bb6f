# SPDX-License-Identifier: Apache-2.0
"""Lets the tests of this folder import the evaluators, and the worlds that the policy tests share."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "policy")]
