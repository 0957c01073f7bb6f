# SPDX-License-Identifier: Apache-2.0
"""The weights that all sides hold: drawn at random at a healthy scale, once, and written for the peers.

Matrices have variance 1 / inputs, so that the residual keeps its size, norms matter more than their epsilon
and router logits differ by about one. Everything is drawn in the number format in which it is served; nothing
is rounded on the way to a peer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.serving.case import Format, Sizes
from model_core.interop.config import CONFIG_FILE, write_config
from model_core.interop.merging import Merged
from model_core.interop.writer import write_shards
from model_core.network.bank import ExpertBank
from model_core.network.decoder import Decoder, upcycle
from model_core.network.expert import Expert
from model_core.training.conversions import to_int8

BASE = "sha256:" + "b" * 64
_SHARD_BYTES = 5 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A base and experts.

    Attributes:
        sizes: of them.
        number_format: of them.
        decoder: the base.
        experts: digest to expert, in canonical order.
    """

    sizes: Sizes
    number_format: Format
    decoder: Decoder
    experts: Mapping[str, Expert]

    def bank(self) -> ExpertBank:
        """A bank that holds all of them; it shares their memory."""
        bank = ExpertBank(BASE, self.decoder)
        for digest, expert in self.experts.items():
            bank.add(digest, expert)
        return bank

    def write_folder(self, folder: Path) -> None:
        """Writes them as a folder that transformers opens.

        Args:
            folder: new.
        """
        folder.mkdir(parents=True)
        merged = Merged(self.decoder, self.experts, self.sizes.top_k)
        write_shards(folder, merged.parts(), shard_bytes=_SHARD_BYTES)
        dtype = str(merged.dtype).removeprefix("torch.")
        (folder / CONFIG_FILE).write_bytes(write_config(merged.layout, dtype=dtype))


def digests(count: int) -> list[str]:
    """So many digests in canonical order, the first ones always the same."""
    return sorted(f"sha256:{hashlib.sha256(str(number).encode()).hexdigest()}" for number in range(count))


def make_world(sizes: Sizes, number_format: Format = "fp32", *, seed: int = 0) -> World:
    """Draws a base and ``sizes.experts - 1`` experts.

    Args:
        sizes: of them.
        number_format: of the weights; router rows are fp32, at values that the format can hold.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(sizes.shape)
    _draw(decoder, number_format, generator)
    experts: dict[str, Expert] = {}
    for digest in digests(sizes.experts - 1):
        expert = upcycle(decoder)
        _draw(expert, number_format, generator)
        experts[digest] = to_int8(expert) if number_format == "int8" else expert
    return World(sizes=sizes, number_format=number_format, decoder=decoder, experts=experts)


@torch.no_grad()
def _draw(module: nn.Module, number_format: Format, generator: torch.Generator) -> None:
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1 and not name.endswith("router.row"):
            drawn = torch.ones(parameter.shape)
        else:
            scale = 1.0 if name.startswith("embed") else 1 / math.sqrt(parameter.shape[-1])
            drawn = torch.randn(parameter.shape, generator=generator) * scale
        if number_format == "bf16":
            rounded = drawn.bfloat16()
            parameter.data = rounded.float() if "router." in name else rounded
        else:
            parameter.data = drawn
