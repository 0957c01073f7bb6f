# SPDX-License-Identifier: Apache-2.0
"""One rank: a process that computes with its part of the weights what the engine's process tells it.

It obeys one line and ends when that line does. Every rank gets the same commands in the same order, so all
come to every exchange alike. It knows neither register nor tenants, nor whose tokens it computes.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
import zlib
from pathlib import Path
from typing import Any

import torch

from model_core.engine.native.derived import DerivedFile, open_tensors
from model_core.engine.runner import Piece
from model_core.engine.sharded.exchange import Exchange, over_lines, over_nccl
from model_core.engine.sharded.layers import load_base_part, load_expert_part
from model_core.engine.sharded.slices import Part
from model_core.engine.sharded.wire import LineClosed, Message, encode, receive
from model_core.engine.steady import SteadyRunner
from model_core.engine.torch_runner import TorchRunner
from model_core.network.bank import CheckedExpert, ExpertBank
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import ModelShape


class Rank:
    """What a rank does with commands.

    Args:
        part: which rank this is.
        exchange: sums over ranks.
        device: where it computes.

    Attributes:
        runner: what computes; None until a base is open.
    """

    def __init__(self, part: Part, exchange: Exchange, device: torch.device) -> None:
        self._part, self._exchange, self._device = part, exchange, device
        self._whole: ModelShape | None = None
        self.runner: TorchRunner | None = None

    def obey(self, document: dict[str, Any]) -> Message:
        """Does what a message says; the answer tells the state of the runner besides what was asked."""
        answer = getattr(self, f"_on_{document['do']}")(document)
        runner = self.runner
        state = {} if runner is None else {"row_exact": runner.row_exact, "size_bytes": runner.size_bytes()}
        return Message(document=state | answer.document, tensors=answer.tensors)

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────
    def _on_open(self, document: dict[str, Any]) -> Message:
        """Takes a base; whatever was open before is let go."""
        self.runner = None
        self._whole = ModelShape(**document["shape"])
        tensors = _mapped(document["file"])
        decoder = load_base_part(tensors, self._whole, self._part, self._exchange, torch.device("cpu"))
        bank = ExpertBank(document["base"], decoder)
        decoder.to(self._device)
        made = SteadyRunner if document["deterministic"] else TorchRunner
        sizes = {name: document[name] for name in ("n_pages", "n_tails", "page_size")}
        self.runner = made(bank, **sizes)
        return Message(document={})

    def _on_refresh(self, document: dict[str, Any]) -> Message:
        """Makes the experts here those that the engine's bank holds."""
        runner, whole = self._opened()
        for digest in document["drop"]:
            runner.bank.remove(digest)
        for one in document["load"]:
            expert = load_expert_part(
                None if one["file"] is None else _mapped(one["file"]),
                FfnForm(**one["form"]),
                whole,
                self._part,
                gated=one["gated"],
                device=self._device,
            )
            # The engine's bank has read the whole expert through.
            runner.bank.install(CheckedExpert(digest=one["digest"], expert=expert, router=""))
        for digest in document["poison"]:
            runner.bank.poison(digest)
        runner.refresh()
        return Message(document={})

    def _on_step(self, document: dict[str, Any]) -> Message:
        """Computes a step, after what was put off until it."""
        runner, _ = self._opened()
        self._catch_up(document["before"])
        result = runner.run([_piece(fields) for fields in document["pieces"]])
        shares_BE = result.shares_BE.cpu()
        check = zlib.crc32(shares_BE.numpy().tobytes())
        shares = [shares_BE] if self._part.rank == 0 else []
        return Message(document={"check": check}, tensors=[result.logits_BV, *shares])

    def _on_erase(self, document: dict[str, Any]) -> Message:
        """Overwrites pages and tails."""
        runner, _ = self._opened()
        self._catch_up(document["before"])
        runner.erase(document["pages"], document["tails"])
        return Message(document={})

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _catch_up(self, before: list[dict[str, Any]]) -> None:
        runner, _ = self._opened()
        for one in before:
            if one["do"] == "keep":
                runner.keep([(place, row) for place, row in one["tails"]])
            else:
                runner.begin(one["tail"], one["page"])

    def _opened(self) -> tuple[TorchRunner, ModelShape]:
        if self.runner is None or self._whole is None:
            raise RuntimeError("no base is open")
        return self.runner, self._whole


def main(config: dict[str, Any]) -> None:
    """Runs a rank until its line ends.

    Args:
        config: ``rank``, ``n_ranks``, ``device``, ``threads``, ``patience_s``, ``line`` (file descriptor of
            the engine's line), ``others`` (those of the lines to other ranks, by number) and ``store`` (a
            file through which GPUs meet).
    """
    torch.set_num_threads(config["threads"])
    part = Part(rank=config["rank"], n_ranks=config["n_ranks"])
    with socket.socket(fileno=config["line"]) as line:
        try:
            exchange, device = _join(config, part)
            rank = Rank(part, exchange, device)
            line.sendall(encode(Message(document={"ready": True})))
            while True:
                line.sendall(encode(rank.obey(receive(line).document)))
        except (LineClosed, BrokenPipeError, ConnectionResetError):
            os._exit(0)  # nothing here is worth keeping, and taking torch apart lasts a second
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            line.sendall(encode(Message(document={"failed": type(error).__name__})))


def _join(config: dict[str, Any], part: Part) -> tuple[Exchange, torch.device]:
    patience_s = config["patience_s"]
    if config["device"] == "cuda":
        device = torch.device("cuda", part.rank)
        torch.cuda.set_device(device)
        store = Path(config["store"])
        return Exchange(over_nccl(store, rank=part.rank, n_ranks=part.n_ranks, patience_s=patience_s)), device
    lines = {int(other): socket.socket(fileno=number) for other, number in config["others"].items()}
    for line in lines.values():
        line.settimeout(patience_s)
    return Exchange(over_lines(part.rank, lines)), torch.device(config["device"])


def _piece(fields: dict[str, Any]) -> Piece:
    return Piece(**(fields | {"columns": tuple(fields["columns"])}))


def _mapped(file: dict[str, str]) -> dict[str, torch.Tensor]:
    tensors = open_tensors(
        DerivedFile(path=Path(file["path"]), name=file["name"], fingerprint=file["fingerprint"])
    )
    if tensors is None:
        raise FileNotFoundError("a file of weights is gone or not whole")
    return tensors
