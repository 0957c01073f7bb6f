# SPDX-License-Identifier: Apache-2.0
"""``base import`` and ``expert import``: files, bundle folders, and Hugging Face model folders.

A model folder is converted on the caller's machine and sent as sealed bundles, through the same doors as any
other bundle. The key that seals a converted bundle is made for this one transfer; the installation checks
it, and then seals in the name of whoever the API key belongs to.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cluster.cli.context import Door

if TYPE_CHECKING:
    from model_core.interop.importing import ImportResult, ImportTerms
    from model_core.interop.progress import OnProgress

_CONFIG = "config.json"
_FOLDER = click.Path(exists=True, path_type=Path)


@click.command("import")
@click.argument("path", type=_FOLDER)
@click.option("--name", help="What the base is called (model folders).")
@click.option("--license", "license_", help="SPDX expression of the model (model folders).")
@click.option("--trained-on", help="What it was trained on, in a sentence (model folders).")
@click.option(
    "--public",
    "public_text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public text that travels with the base, JSON lines {id, text}: owners fit gates against it.",
)
@click.option("--max-positions", type=int, help="Longest sequence in tokens, in place of the config's.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the sealed bundles are kept: base, and experts/NAME for their owners to import.",
)
@click.option("--tenant", default="platform", help="Owner of the experts of a mixture folder.")
@click.option("--expert-name", "expert_names", multiple=True, help="Name of an expert (repeat, in order).")
@click.option(
    "--against",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Bundle folder of a registered base: the folder must share everything but its experts with it.",
)
@click.pass_obj
def import_base(
    door: Door,
    /,
    path: Path,
    public_text: Path | None,
    out: Path | None,
    against: Path | None,
    **said: Any,
) -> None:
    """Register a base: a tar archive, a bundle's folder, or a Hugging Face model folder.

    Model folders may be Olmo2, Llama, OLMoE, FlexOlmo or Mixtral checkpoints in safetensors. Of a mixture the
    first expert becomes the base's public network; the others are written below --out as sealed bundles,
    which their owners import with `marketplace expert import`.

    \b
    Allowed to: operator.

    \b
    Example:
      marketplace base import ./OLMo-2-0425-1B --name olmo2-1b
          --license Apache-2.0 --trained-on "Dolma" --public public.jsonl
      marketplace base import ./FlexOlmo-7x7B-1T --name flexolmo
          --license Apache-2.0 --trained-on "FlexOlmo's public mix"
          --out ./flexolmo --tenant ai2 --expert-name news --expert-name math
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    if not (path / _CONFIG).is_file():
        door.show(_send(door, "bases.import", path))
        return
    with tempfile.TemporaryDirectory(prefix="marketplace-import-") as scratch, _progress(door) as tell:
        place = out or Path(scratch) / "out"
        result = _convert(path, place, _terms(said, public_text), against, on_progress=tell)
        if result.experts and out is None:
            raise click.UsageError(
                f"The folder holds {len(result.experts)} experts beside the public one. Say with --out where "
                "their bundles shall be written."
            )
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        for expert in result.experts:
            click.echo(f"expert: {expert.folder}", err=True)
        if against is not None:
            door.show({"base": result.base.digest, "experts": [one.digest for one in result.experts]})
            return
        door.show(_send(door, "bases.import", result.base.folder))


@click.command("import")
@click.argument("path", type=_FOLDER)
@click.option("--dataset-ids", multiple=True, required=True, help="Your datasets that it was trained on.")
@click.option(
    "--seal/--no-seal",
    default=False,
    help="Let the installation seal it with the key that it keeps for you (bundles that were converted).",
)
@click.pass_obj
def import_expert(door: Door, path: Path, dataset_ids: tuple[str, ...], *, seal: bool) -> None:
    """Admit an expert trained elsewhere: a tar archive or a bundle's folder.

    \b
    Allowed to: owner.

    \b
    Example:
      marketplace expert import ./experts/news --seal --dataset-ids dat_0198f0c2a1b37c4e8d5f60718293a4b5
    """  # noqa: D301  (\b is click's own mark for text to leave as it is)
    door.show(_send(door, "experts.import", path, dataset_ids=list(dataset_ids), seal=seal))


def _send(door: Door, operation: str, path: Path, **fields: Any) -> dict[str, Any]:
    """Uploads an archive, or packs a bundle's folder first."""
    from cluster.operations.intake import pack_bundle

    with tempfile.TemporaryDirectory(prefix="marketplace-send-") as scratch, door.client() as client:
        archive = path
        if path.is_dir():
            archive = Path(scratch) / "bundle.tar"
            pack_bundle(path, archive)
        return client.upload(operation, archive, **fields)


def _terms(said: dict[str, Any], public_text: Path | None) -> ImportTerms:
    from model_core.interop.importing import ImportTerms
    from model_core.packing.keys import generate_key
    from model_core.text.documents import read_documents
    from model_core.training.versions import code_version

    for option in ("name", "license_", "trained_on"):
        if not said[option]:
            flag = "--" + option.rstrip("_").replace("_", "-")
            raise click.UsageError(f"A model folder does not say it of itself: give {flag}.")
    return ImportTerms(
        name=said["name"],
        license=said["license_"],
        trained_on=said["trained_on"],
        owner_key=generate_key(),
        created_at_us=time.time_ns() // 1000,
        code_version=code_version(),
        public_documents=read_documents(public_text) if public_text else (),
        max_positions=said["max_positions"],
        tenant=said["tenant"],
        expert_names=said["expert_names"] or None,
    )


def _convert(
    path: Path, out: Path, terms: ImportTerms, against: Path | None, *, on_progress: OnProgress
) -> ImportResult:
    from model_core.interop.importing import import_folder

    return import_folder(path, out, terms, known_base=against, on_progress=on_progress)


@contextmanager
def _progress(door: Door) -> Iterator[OnProgress]:
    """A bar of bytes on the error stream, so that answers can be piped."""
    from model_core.interop.progress import TransferProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=door.as_json) as bar:
        task = bar.add_task("reading", total=None)

        def tell(moment: TransferProgress) -> None:
            bar.update(task, description=moment.phase, completed=moment.done_bytes, total=moment.total_bytes)

        yield tell
