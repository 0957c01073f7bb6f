# SPDX-License-Identifier: Apache-2.0
"""``deployment export``: a composition as a folder that opens with ``AutoModelForCausalLM``.

The office decides and logs that it may leave; the bundles are fetched, checked against their digests, and
merged on the caller's machine. The folder's model card names the members with licenses and duties.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cluster.cli.context import Door

if TYPE_CHECKING:
    from cluster.client import MarketplaceClient
    from model_core.interop.exporting import ExportReport, ExportTerms
    from model_core.packing.bundle import CheckedBundle

_WARNING = (
    "Weights that have left cannot be called back: a later withdrawal ends their use here, not in your copy. "
    "That you took them is recorded for their owners."
)


@click.command("export")
@click.argument("name")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--only-permitted",
    is_flag=True,
    help="Leave out experts that may be served but not exported, instead of refusing.",
)
@click.option(
    "--approximate",
    is_flag=True,
    help="Leave out what the plain layout cannot hold (gates, biases), and measure the difference.",
)
@click.option("--yes", is_flag=True, help="Do not ask whether you know that a copy cannot be called back.")
@click.pass_obj
def export(
    door: Door, /, name: str, folder: Path, *, only_permitted: bool, approximate: bool, yes: bool
) -> None:
    """Write deployment NAME's composition to FOLDER, for AutoModelForCausalLM.

    Exporting is an action of its own: every owner has to have consented to export_weights, and compliance to
    have permitted it.

    \b
    Allowed to: developer of the deployment's tenant.

    \b
    Example:
      marketplace deployment export research-desk ./research-desk --approximate
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    if not yes and not door.as_json:
        click.confirm(f"{_WARNING} Go on?", abort=True)
    with (
        tempfile.TemporaryDirectory(prefix="marketplace-export-", dir=_beside(folder)) as scratch,
        door.client(timeout_s=600.0) as client,
        _bar(door) as (bar, task),
    ):
        ticket = client.call("deployments.export", name=name, only_permitted=only_permitted)
        digests = [ticket["base_digest"], *(member["bundle_digest"] for member in ticket["members"])]
        bundles = []
        for number, digest in enumerate(digests):
            bar.update(task, description=f"fetching {number + 1} of {len(digests)}")
            bundles.append(_fetch(client, ticket, digest, Path(scratch) / str(number), (bar, task)))
        report = _write(ticket, bundles, folder, (bar, task), approximate=approximate)
    door.show(_shown(ticket, report))


def _beside(folder: Path) -> Path:
    """The folder's parent: bundles are large, and whoever chose a disk for the model chose it for them."""
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def _fetch(
    client: MarketplaceClient,
    ticket: Mapping[str, Any],
    digest: str,
    folder: Path,
    shown: tuple[Progress, TaskID],
) -> CheckedBundle:
    """Fetches one bundle and checks it.

    Raises:
        DigestMismatch: it is another bundle than the one that was decided on.
    """
    from cluster.operations.intake import unpack_bundle
    from model_core.packing.bundle import check_bundle

    archive, (bar, task) = folder.with_suffix(".tar"), shown
    path = f"/api/v1/deployments/{ticket['deployment']}/export/{digest}"
    client.download(path, archive, lambda done, total: bar.update(task, completed=done, total=total or None))
    unpack_bundle(archive, folder)
    archive.unlink()
    return check_bundle(folder, expect_digest=digest)


def _write(
    ticket: Mapping[str, Any],
    bundles: list[CheckedBundle],
    folder: Path,
    shown: tuple[Progress, TaskID],
    *,
    approximate: bool,
) -> ExportReport:
    from model_core.interop.exporting import export_composition
    from model_core.interop.progress import TransferProgress

    bar, task = shown

    def tell(moment: TransferProgress) -> None:
        bar.update(task, description=moment.phase, completed=moment.done_bytes, total=moment.total_bytes)

    return export_composition(
        bundles[0],
        bundles[1:],
        folder,
        _terms(ticket),
        top_k=ticket["top_k"],
        approximate=approximate,
        on_progress=tell,
    )


def _terms(ticket: Mapping[str, Any]) -> ExportTerms:
    from model_core.interop.card import MemberTerms
    from model_core.interop.exporting import ExportTerms

    duties: dict[str, list[str]] = {}
    for duty in ticket["obligations"]:
        duties.setdefault(duty["subject"], []).append(f"{duty['license_key']}: {duty['text']}")
    members = {
        member["bundle_digest"]: MemberTerms(
            license=member["license"], obligations=tuple(duties.pop(member["expert_id"], ()))
        )
        for member in ticket["members"]
    }
    notes = [
        _origin(ticket),
        _WARNING,
        *(f"Duty for {subject}: {text}" for subject, texts in duties.items() for text in texts),
        *(f"Left out, since its weights may not leave: {name}." for name in ticket["left_out"]),
    ]
    return ExportTerms(title=str(ticket["deployment"]), members=members, notes=notes)


def _origin(ticket: Mapping[str, Any]) -> str:
    return (
        f"Taken from deployment {ticket['deployment']} by {ticket['tenant']} at epoch {ticket['epoch']}, "
        f"decision {ticket['decision_id']}, composition {ticket['composition_digest']}."
    )


def _shown(ticket: Mapping[str, Any], report: ExportReport) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "architecture": report.layout.architecture.name,
        "experts": [f"{member['tenant']}/{member['name']}" for member in ticket["members"]],
        "left_out": list(ticket["left_out"]),
        "top_k": report.layout.top_k,
        "exact": not report.lost,
        "lost": [sentence for _, sentence in report.lost],
        "difference": None if report.difference is None else asdict(report.difference),
        "notes": list(report.notes),
        "decision_id": ticket["decision_id"],
    }


@contextmanager
def _bar(door: Door) -> Iterator[tuple[Progress, TaskID]]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=door.as_json) as bar:
        yield bar, bar.add_task("asking", total=None)
