# SPDX-License-Identifier: Apache-2.0
"""A composition seen as one checkpoint of a Hugging Face layout, and what that layout cannot hold.

Every expert there is a plain SwiGLU of one common inner width. Folded in where that is exact: narrower
networks are padded with neurons of weight zero, which add exactly nothing, split pieces are joined, and in
fp32 low-rank changes are merged and integers widened. What is left is named: domain gates, biases, and
folding that would round. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.errors import ExportNotExact
from model_core.interop.architectures import FLEX_OLMO, LLAMA, MIXTRAL, OLMO2, OLMOE, Architecture
from model_core.interop.config import Layout
from model_core.interop.names import FFN_PARTS, ffn_places, router_name, trunk_places
from model_core.interop.writer import Part
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.manifest import ModelShape


class Merged:
    """What a base and experts are as one checkpoint.

    Args:
        decoder: the base.
        experts: bundle digest → expert, in canonical order.
        top_k: experts per token, the public one counted.

    Raises:
        ExportNotExact: no layout holds the base itself.
    """

    def __init__(self, decoder: Decoder, experts: Mapping[str, Expert], top_k: int) -> None:
        self.decoder, self.experts = decoder, dict(experts)
        n_experts = 1 + len(experts)
        widths = [expert.form.d_ffn for expert in experts.values()]
        shape = decoder.shape.model_copy(update={"d_ffn": max([decoder.shape.d_ffn, *widths])})
        self.layout = Layout(
            architecture=_architecture(shape, mixture=n_experts > 1),
            shape=shape,
            n_experts=n_experts,
            top_k=max(1, min(top_k, n_experts)),
        )
        self.dtype = decoder.embed.weight.dtype
        rows = torch.stack([row for layer in range(shape.n_layers) for row in self._rows(layer)])
        self.rows_rounded = bool((rows.to(self.dtype).float() != rows).any())
        self.row_dtype = torch.float32 if self.rows_rounded else self.dtype

    def lost(self) -> tuple[tuple[str, str], ...]:
        """What the layout cannot hold: (expert's digest or ``""`` for all, sentence)."""
        found = [
            (digest, sentence)
            for digest, expert in self.experts.items()
            for sentence in _lost_of(expert, self.dtype)
        ]
        layout = self.layout
        divided = layout.shape.renormalise or layout.top_k == layout.n_experts
        if layout.architecture is MIXTRAL and not divided:
            found.append(
                ("", "The layout divides the weights of a token's experts by their sum; the base does not.")
            )
        return tuple(found)

    def parts(self) -> list[Part]:
        """All tensors under their names there, layer by layer."""
        layout = self.layout
        named = {place.name: ours for ours, place in trunk_places(layout).items()}
        parts = [
            Part(name=theirs, dtype=tensor.dtype, shape=tuple(tensor.shape), load=_constant(tensor))
            for theirs, ours in named.items()
            for tensor in (self.decoder.get_parameter(ours),)
        ]
        folded = _Folded(self.decoder, list(self.experts.values()), layout.shape.d_ffn)
        for expert in range(layout.n_experts):
            for ours, place in ffn_places(layout, expert, fused=False).items():
                _, layer, _, part, _ = ours.split(".")
                tall = (layout.shape.d_ffn, layout.shape.d_model)
                parts.append(
                    Part(
                        name=place.name,
                        dtype=self.dtype,
                        shape=tall[::-1] if part == "down" else tall,
                        load=folded.loader(expert, int(layer), part),
                    )
                )
        if layout.architecture.moe:
            parts += [self._router_part(layer) for layer in range(layout.shape.n_layers)]
        return sorted(parts, key=_place_in_model)

    def _router_part(self, layer: int) -> Part:
        return Part(
            name=router_name(self.layout.architecture, layer),
            dtype=self.row_dtype,
            shape=(self.layout.n_experts, self.layout.shape.d_model),
            load=lambda: torch.stack(self._rows(layer)).to(self.row_dtype),
        )

    def _rows(self, layer: int) -> list[Tensor]:
        """Router rows of a layer in fp32, the public one first."""
        public = self.decoder.layer(layer).router.row
        others = (expert.layer(layer).router.row for expert in self.experts.values())
        return [row.detach().float() for row in (public, *others)]


class _Folded:
    """Experts as plain SwiGLUs of one width, one layer of one expert at a time."""

    def __init__(self, decoder: Decoder, experts: list[Expert], d_ffn: int) -> None:
        self._decoder, self._experts, self._d_ffn = decoder, experts, d_ffn
        self._at: tuple[int, int] | None = None
        self._parts: dict[str, Tensor] = {}

    def loader(self, expert: int, layer: int, part: str) -> Callable[[], Tensor]:
        """A function that gives one matrix; an expert's three are made and kept together."""

        def load() -> Tensor:
            if self._at != (expert, layer):
                self._parts = {}
                self._parts, self._at = self._fold(expert, layer), (expert, layer)
            return self._parts[part]

        return load

    @torch.no_grad()
    def _fold(self, expert: int, layer: int) -> dict[str, Tensor]:
        public = self._decoder.layer(layer).ffn
        if expert == 0:
            weights = (public.gate.weight, public.up.weight, public.down.weight)
        else:
            weights = self._experts[expert - 1].layer(layer).dense_ffn(public)
        missing = self._d_ffn - weights[0].shape[0]
        if missing:
            gate, up, down = weights
            weights = (
                F.pad(gate, (0, 0, 0, missing)),
                F.pad(up, (0, 0, 0, missing)),
                F.pad(down, (0, missing)),
            )
        return dict(zip(FFN_PARTS, (part.detach() for part in weights), strict=True))


def _architecture(shape: ModelShape, *, mixture: bool) -> Architecture:
    if shape.family == "olmo2":
        return FLEX_OLMO if mixture else OLMO2
    if shape.family == "llama":
        return MIXTRAL if mixture else LLAMA
    if shape.d_head is not None:
        raise ExportNotExact(
            "The layout of OLMoE has no heads of another width than hidden_size / num_attention_heads.",
            reasons=["d_head"],
        )
    return OLMOE


def _lost_of(expert: Expert, dtype: torch.dtype) -> list[str]:
    """Sentences on what of one expert has no place in a plain checkpoint."""
    layers = [expert.layer(index) for index in range(len(expert.layers))]
    lost = []
    if any(part.gate is not None for part in layers):
        lost.append("It has domain gates, which the layout cannot hold.")
    if any(part.router.bias is not None and bool(part.router.bias < 0) for part in layers):
        lost.append("Its router has a bias below 0, which the layout cannot hold.")
    if expert.kind in ("low_rank", "int8") and dtype != torch.float32:
        lost.append(f"Its kind is {expert.kind}; as one matrix it must be rounded to {_spell(dtype)}.")
    return lost


def _spell(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _place_in_model(part: Part) -> tuple[int, str]:
    """Embedding, layers in order, then the rest: what is needed together lies together."""
    pieces = part.name.split(".")
    if pieces[1] == "embed_tokens":
        return -1, part.name
    return (int(pieces[2]), part.name) if pieces[1] == "layers" else (1 << 20, part.name)
