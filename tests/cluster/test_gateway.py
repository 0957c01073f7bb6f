# SPDX-License-Identifier: Apache-2.0
"""The HTTP door: who gets an answer at all, and in which form."""

from __future__ import annotations

from typing import Any


def test_town_runs_the_permitted_expert(town: Any) -> None:
    """What was offered, consented to, granted and approved is what the deployment runs."""
    shown = town.get("dev", "/deployments/notes-research")
    assert [row["expert_id"] for row in shown["composition"]["members"]] == [town.ids["expert"]], shown
