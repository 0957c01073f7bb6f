# SPDX-License-Identifier: Apache-2.0
"""What every record is: frozen, and its fields are only ever added."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

PUBLIC = "public"


class Record(BaseModel):
    """A frozen answer; fields are only ever added."""

    model_config = ConfigDict(frozen=True, extra="ignore")
