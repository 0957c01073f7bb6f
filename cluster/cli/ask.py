# SPDX-License-Identifier: Apache-2.0
"""``marketplace ask``: streams a completion and says which experts computed it."""

from __future__ import annotations

import json
from typing import Any

import click

from cluster.cli.context import Door


@click.command()
@click.argument("deployment")
@click.argument("prompt")
@click.option("--max-tokens", default=128, show_default=True, help="Most new tokens.")
@click.option("--temperature", default=0.7, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, help="Makes the answer repeatable.")
@click.option("--stop", multiple=True, help="Text that ends the answer (repeat for several).")
@click.pass_obj
def ask(
    door: Door,
    deployment: str,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    stop: tuple[str, ...],
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
        for event in client.stream("/v1/completions", body):
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
