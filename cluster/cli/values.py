# SPDX-License-Identifier: Apache-2.0
"""Kinds of values on the command line that click does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


class JsonText(click.ParamType[Any]):
    """A JSON value, or ``@file`` that holds one."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads it."""
        if not isinstance(value, str):
            return value
        try:
            text = Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value
            return json.loads(text)
        except (OSError, ValueError):
            self.fail("expected JSON, or @file with JSON in it", param, ctx)
