# SPDX-License-Identifier: Apache-2.0
"""Withdrawal under load, played over the real doors and judged from outside the engine."""
