# SPDX-License-Identifier: Apache-2.0
"""Opens a model folder as modules, without papers: to look at what an export has become.

Serving never does this; it loads sealed bundles. Knows nothing of licenses and owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model_core.interop.config import Layout, read_config
from model_core.interop.splitting import Source
from model_core.interop.writer import Part
from model_core.network.attention import rotary_tables
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert


def open_folder(folder: Path) -> tuple[Layout, Decoder, tuple[Expert, ...]]:
    """Maps a model folder into a decoder and its experts, in the folder's order.

    Raises:
        ConfigUnsupported: the model computes something that this decoder does not.
        ModelFolderRefused: files or tensors are missing, unknown or of another shape or dtype.
    """
    layout = read_config(folder)
    source, shape = Source(folder, layout), layout.shape
    with torch.device("meta"):
        decoder = Decoder(shape)
        experts = [
            Expert(n_layers=shape.n_layers, d_model=shape.d_model, d_ffn=shape.d_ffn)
            for _ in range(1, layout.n_experts)
        ]
    _fill(decoder, source.base_parts())
    decoder.rope_cos, decoder.rope_sin = rotary_tables(shape)
    for index, expert in enumerate(experts, start=1):
        _fill(expert, source.expert_parts(index))
    frozen = tuple(expert.requires_grad_(False).eval() for expert in experts)
    return layout, decoder.requires_grad_(False).eval(), frozen


def _fill(module: nn.Module, parts: Sequence[Part]) -> None:
    module.load_state_dict({part.name: part.load() for part in parts}, assign=True)
