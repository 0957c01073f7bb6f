# SPDX-License-Identifier: Apache-2.0
"""``marketplace ask``: streams a completion and says which experts computed it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from cluster.cli.context import Door
from cluster.errors import HostUnavailable

if TYPE_CHECKING:
    from cluster.client import MarketplaceClient

_ASK_AGAIN_S = 2.0


@click.command()
@click.argument("deployment")
@click.argument("prompt")
@click.option("--max-tokens", default=128, show_default=True, help="Most new tokens.")
@click.option("--temperature", default=0.7, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, help="Makes the answer repeatable.")
@click.option("--stop", multiple=True, help="Text that ends the answer (repeat for several).")
@click.option(
    "--wait-s", default=180.0, show_default=True, help="How long to wait for a model host that still starts."
)
@click.pass_obj
def ask(
    door: Door,
    deployment: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop: tuple[str, ...],
    wait_s: float,
) -> None:
    """Ask DEPLOYMENT to continue PROMPT, and stream what it says.

    \b
    Example:
      marketplace ask research-desk "def fibonacci(n):" --max-tokens 64
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    body: dict[str, Any] = {
        "model": deployment,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
    }
    if seed is not None:
        body["seed"] = seed
    if stop:
        body["stop"] = list(stop)
    account: dict[str, Any] = {}
    with door.client() as client:
        for event in _stream(client, body, wait_s):
            for choice in event.get("choices", []):
                if not door.as_json:
                    click.echo(choice.get("text", ""), nl=False)
            account = event.get("marketplace") or account
    if door.as_json:
        click.echo(json.dumps(account, indent=2, sort_keys=True))
        return
    click.echo()
    for segment in account.get("segments", []):
        tokens = segment["to_token"] - segment["from_token"]
        shares = ", ".join(
            f"{name} {weight / max(tokens, 1) / 10_000:.0f} %"
            for name, weight in sorted(segment["experts"].items())
        )
        later = segment.get("to_epoch")
        epochs = f"epochs {segment['epoch']}-{later}" if later else f"epoch {segment['epoch']}"
        click.echo(f"[tokens {segment['from_token']}-{segment['to_token']}, {epochs}: {shares}]", err=True)


def _stream(client: MarketplaceClient, body: dict[str, Any], wait_s: float) -> Iterator[dict[str, Any]]:
    """The events of an answer; the first deployment of a base finds its host still starting, and waits.

    Raises:
        HostUnavailable: no host came in ``wait_s``, or it went away within the answer.
    """
    until_s = time.monotonic() + wait_s
    begun = said = False
    while True:
        try:
            for event in client.stream("/v1/completions", body):
                begun = True
                yield event
        except HostUnavailable as error:
            if begun or time.monotonic() + _ASK_AGAIN_S > until_s:
                raise
            if not said:
                click.echo(f"{error} Waiting for it (at most {wait_s:.0f} s) …", err=True)
            said = True
            time.sleep(_ASK_AGAIN_S)
        else:
            return
