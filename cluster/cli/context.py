# SPDX-License-Identifier: Apache-2.0
"""What every command shares: where the gateway is, whose key is used, how results are printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.errors import NotRunning
from cluster.home import Home
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.client import MarketplaceClient


@dataclass(kw_only=True)
class Door:
    """One invocation's way in.

    Attributes:
        url: gateway address, or None for the marketplace that runs from this home.
        key: API key, or None for the home's operator key.
        as_json: print JSON instead of tables.
        only: print this field of the answer alone (dots go deeper).
    """

    url: str | None
    key: str | None
    as_json: bool
    only: str | None = None

    @cached_property
    def settings(self) -> Settings:
        """The operator's choices."""
        return Settings()

    @cached_property
    def home(self) -> Home:
        """The installation's folder."""
        return Home(self.settings.home)

    def show(self, document: Mapping[str, Any]) -> None:
        """Prints an answer as the options ask."""
        from cluster.cli.display import show, show_field

        if self.only is not None:
            show_field(document, self.only)
        else:
            show(document, as_json=self.as_json)

    def client(self, *, timeout_s: float = 60.0) -> MarketplaceClient:
        """A client for the chosen gateway and key.

        Raises:
            NotRunning: no address was given and nothing runs from this home.
        """
        from cluster.client import MarketplaceClient

        return MarketplaceClient(url=self.url or self._running_url(), key=self._secret(), timeout_s=timeout_s)

    def _running_url(self) -> str:
        run = self.home.read_run()
        if run is None or not run.get("url"):
            raise NotRunning(
                "No marketplace runs from this home. Start one with `marketplace up`, or name one with --url."
            )
        return str(run["url"])

    def _secret(self) -> str | None:
        if self.key:
            return self.key
        if self.url is None and self.home.operator_key.exists():
            return self.home.read_secret(self.home.operator_key).decode().strip()
        return None
