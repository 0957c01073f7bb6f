# SPDX-License-Identifier: Apache-2.0
"""Which part of every tensor a rank holds.

Attention is cut by key-value heads (queries go with theirs), every feed-forward network by its inner width,
the output layer by the vocabulary; norms, router rows, gates and the embedding are whole everywhere. Each
rank has a part of each expert, so no composition leaves one idle, and loading, poisoning and removing an
expert are one act that all do. Knows tensors and numbers of ranks; no processes and no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.errors import RanksRefused
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.kinds import SplitFfn
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import ModelShape

# Inner neurons are cut where vector registers end: products of odd widths are slower, and on some builds of
# torch the bits of their rows depend on other rows.
UNIT = 8

# Names relative to ``ffn.``; whatever is not named here is whole on every rank.
_BY_ROWS = frozenset({"gate.weight", "up.weight", "gate.scale", "up.scale", "gate.b", "up.b"})
_BY_COLUMNS = frozenset({"down.weight", "down.a"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One rank of several.

    Attributes:
        rank: its number, from 0.
        n_ranks: how many there are.
    """

    rank: int
    n_ranks: int

    def of(self, total: int) -> slice:
        """Its part of consecutive things: sizes differ by one at most, and may be 0."""
        return slice(total * self.rank // self.n_ranks, total * (self.rank + 1) // self.n_ranks)

    def neurons(self, total: int) -> slice:
        """Its part of inner neurons, cut at multiples of ``UNIT``; may be empty."""
        units = self.of(-(-total // UNIT))
        return slice(min(total, units.start * UNIT), min(total, units.stop * UNIT))

    def width(self, total: int) -> int:
        """How many inner neurons it computes: its part, filled up to a multiple of ``UNIT`` with zeros."""
        part = self.neurons(total)
        return max(1, -(-int(part.stop - part.start) // UNIT)) * UNIT


def check_ranks(shape: ModelShape, n_ranks: int) -> None:
    """Whether a base can be spread over so many ranks.

    Raises:
        RanksRefused: it has fewer key-value heads, or no rank is asked for.
    """
    if not 1 <= n_ranks <= shape.n_kv_heads:
        raise RanksRefused(
            f"This base has {shape.n_kv_heads} key-value heads, so it can be spread over 1 to "
            f"{shape.n_kv_heads} processes; choose such a number.",
            n_kv_heads=shape.n_kv_heads,
            n_ranks=n_ranks,
        )


def part_shape(shape: ModelShape, part: Part) -> ModelShape:
    """The sizes of what a rank holds; the vocabulary is that of the whole embedding."""
    heads = part.of(shape.n_kv_heads)
    n_kv_heads = heads.stop - heads.start
    n_heads = n_kv_heads * (shape.n_heads // shape.n_kv_heads)
    fields = shape.model_dump() | {
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ffn": part.width(shape.d_ffn),
        "d_head": None if n_heads * shape.head_dim == shape.d_model else shape.head_dim,
    }
    return ModelShape(**fields)


def part_form(form: FfnForm, part: Part) -> FfnForm:
    """The form of what a rank holds of an expert; pieces of a split one are joined before they are cut."""
    width = part.width(form.d_ffn)
    if form.kind in ("low_rank", "int8"):
        return FfnForm(kind=form.kind, d_ffn=width, rank=form.rank)
    return FfnForm(d_ffn=width)


def base_slices(decoder: Decoder, part: Part) -> dict[str, Tensor]:
    """A rank's part of the base by the names of ``state_dict``; views where memory allows."""
    shape, found = decoder.shape, {}
    kv_heads, width = part.of(shape.n_kv_heads), shape.head_dim
    keys = slice(kv_heads.start * width, kv_heads.stop * width)
    queries = slice(*(edge * (shape.n_heads // shape.n_kv_heads) for edge in (keys.start, keys.stop)))
    by_rows = {"q.weight": queries, "q_norm.weight": queries}
    by_rows |= {"k.weight": keys, "v.weight": keys, "k_norm.weight": keys}
    for name, tensor in decoder.state_dict().items():
        _, _, inside = name.partition(".attn.")
        if inside in by_rows:
            found[name] = tensor[by_rows[inside]]
        elif inside == "o.weight":
            found[name] = tensor[:, queries]
        elif name == "lm_head.weight":
            found[name] = tensor[part.of(shape.vocab_size)]
        else:
            found[name] = _ffn_part(name, tensor, part)
    return found


def expert_slices(expert: Expert, part: Part) -> dict[str, Tensor]:
    """A rank's part of an expert by the names of a ``state_dict`` of its ``part_form``."""
    found = {
        name: _ffn_part(name, tensor, part)
        for name, tensor in expert.state_dict().items()
        if ".ffn.pieces." not in name
    }
    for index in range(len(expert.layers)):
        ffn = expert.layer(index).ffn
        if isinstance(ffn, SplitFfn):
            for name, tensor in _joined(ffn).items():
                whole = f"layers.{index}.ffn.{name}"
                found[whole] = _ffn_part(whole, tensor, part).clone()  # not a view that keeps all of it
    return found


def _joined(ffn: SplitFfn) -> Mapping[str, Tensor]:
    pieces = list(ffn.each())
    return {
        "gate.weight": torch.cat([piece.gate.weight for piece in pieces]),
        "up.weight": torch.cat([piece.up.weight for piece in pieces]),
        "down.weight": torch.cat([piece.down.weight for piece in pieces], dim=1),
    }


def _ffn_part(name: str, tensor: Tensor, part: Part) -> Tensor:
    _, _, inside = name.partition(".ffn.")
    if inside in _BY_ROWS:
        total = tensor.shape[0]
        return _filled(tensor[part.neurons(total)], part.width(total), 0)
    if inside in _BY_COLUMNS:
        total = tensor.shape[1]
        return _filled(tensor[:, part.neurons(total)], part.width(total), 1)
    return tensor


def _filled(cut: Tensor, width: int, dimension: int) -> Tensor:
    """Neurons of zeros besides, which add nothing."""
    missing = width - cut.shape[dimension]
    if not missing:
        return cut
    size = [missing if place == dimension else n for place, n in enumerate(cut.shape)]
    return torch.cat([cut, cut.new_zeros(size)], dim=dimension)
