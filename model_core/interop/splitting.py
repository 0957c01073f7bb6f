# SPDX-License-Identifier: Apache-2.0
"""A checkpoint seen as one base and the experts beside it, tensor by tensor.

Expert 0 of a mixture is the public one. Softmax is invariant to a shift of all logits, so the public row is
subtracted from every row: the base's row is 0 and expert i brings ``r_i - r_0`` in fp32. Checkpoints whose
shared tensors are equal therefore split against the same base, whichever experts they hold. Knows nothing of
bundles and their papers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from model_core.errors import ModelFolderRefused, SharedPartDiffers
from model_core.interop.config import Layout
from model_core.interop.names import (
    Place,
    expected_names,
    ffn_places,
    is_fused,
    may_be_ignored,
    router_name,
    trunk_places,
)
from model_core.interop.reader import DTYPES, Checkpoint, Held, open_checkpoint
from model_core.interop.writer import Part

OnBytes = Callable[[int], None]


class Source:
    """The weights of a model folder in our terms.

    Args:
        folder: of the model.
        layout: what its config says.

    Raises:
        ModelFolderRefused: tensors are missing, unknown, of another shape, or of mixed dtypes.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.layout = layout
        self.checkpoint = open_checkpoint(folder)
        self.fused = layout.architecture.moe and is_fused(self.checkpoint.held)
        self._check()
        self.dtype = DTYPES[self.checkpoint.held["model.embed_tokens.weight"].dtype]

    def base_places(self) -> dict[str, Place]:
        """Our name → place of everything in the base but its router rows, which are 0."""
        return trunk_places(self.layout) | ffn_places(self.layout, 0, fused=self.fused)

    def base_parts(self) -> list[Part]:
        """The tensors of ``base.safetensors``."""
        width = (self.layout.shape.d_model,)
        rows = [
            Part(name=f"layers.{layer}.router.row", dtype=torch.float32, shape=width, load=_zeros(width))
            for layer in range(self.layout.shape.n_layers)
        ]
        return [self._part(name, place) for name, place in self.base_places().items()] + rows

    def expert_parts(self, expert: int) -> list[Part]:
        """The tensors of ``expert.safetensors`` of the expert at an index of the folder."""
        parts = [
            self._part(name, place)
            for name, place in ffn_places(self.layout, expert, fused=self.fused).items()
        ]
        for layer in range(self.layout.shape.n_layers):
            at, width = f"layers.{layer}.router", (self.layout.shape.d_model,)
            row = Part(name=f"{at}.row", dtype=torch.float32, shape=width, load=self._row(layer, expert))
            bias = Part(name=f"{at}.bias", dtype=torch.float32, shape=(), load=_zeros(()))
            parts += [row, bias]
        return parts

    def compare(self, known: Checkpoint, on_bytes: OnBytes) -> None:
        """Compares everything shared with a base's own file, byte for byte.

        Args:
            known: the tensors of ``base.safetensors``.
            on_bytes: told the length of every tensor compared.

        Raises:
            SharedPartDiffers: names the first tensor that differs.
        """
        for name, place in self.base_places().items():
            ours, theirs = known.tensor(name), self.take(place)
            same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
            if not same or not torch.equal(_raw(ours), _raw(theirs)):
                raise SharedPartDiffers(
                    f"{place.name} is not the one of the known base ({name}); these experts were trained "
                    "beside another base. Import the folder without a known base.",
                    tensor=place.name,
                )
            on_bytes(theirs.numel() * theirs.element_size())
        for layer in range(self.layout.shape.n_layers):
            if known.tensor(f"layers.{layer}.router.row").any():
                raise SharedPartDiffers(
                    "The known base has a public router row that is not 0, so rows do not fit it.",
                    tensor=f"layers.{layer}.router.row",
                )

    def take(self, place: Place) -> Tensor:
        """Maps what lies at a place."""
        return self.checkpoint.tensor(place.name, index=place.index, rows=place.rows)

    def _part(self, name: str, place: Place) -> Part:
        held = self.checkpoint.held[place.name]
        shape = held.shape if place.index is None else held.shape[1:]
        if place.rows is not None:
            shape = (place.rows[1] - place.rows[0], *shape[1:])
        return Part(name=name, dtype=DTYPES[held.dtype], shape=shape, load=lambda: self.take(place))

    def _row(self, layer: int, expert: int) -> Callable[[], Tensor]:
        name = router_name(self.layout.architecture, layer)

        def load() -> Tensor:
            rows_ED = self.checkpoint.tensor(name)
            return rows_ED[expert].float() - rows_ED[0].float()

        return load

    def _check(self) -> None:
        held = self.checkpoint.held
        expected = expected_names(self.layout, fused=self.fused)
        tied = self.layout.shape.tie_embeddings
        extra = [n for n in held.keys() - expected.keys() if not may_be_ignored(n, tied=tied)]
        wrong = [n for n, shape in expected.items() if n not in held or held[n].shape != shape]
        if bad := sorted(extra) + sorted(wrong):
            raise ModelFolderRefused(
                f"{len(bad)} tensors are missing, unknown or of another shape than the config implies, first "
                f"{bad[0][:80]!r}.",
                tensors=[name[:80] for name in bad[:16]],
            )
        routers = {router_name(self.layout.architecture, n) for n in range(self.layout.shape.n_layers)}
        self._check_dtypes({name: held[name] for name in expected}, routers)

    def _check_dtypes(self, held: dict[str, Held], routers: set[str]) -> None:
        for name, one in held.items():
            if one.dtype not in DTYPES:
                raise ModelFolderRefused(
                    f"{name[:80]!r} has dtype {one.dtype}; only fp32, bf16 and fp16 weights are supported.",
                    tensors=[name[:80]],
                )
        wanted = held["model.embed_tokens.weight"].dtype
        # Norms and routers may be wider than the rest; what is multiplied together must be of one dtype.
        mixed = sorted(
            name
            for name, one in held.items()
            if len(one.shape) > 1 and one.dtype != wanted and name not in routers
        )
        if mixed:
            raise ModelFolderRefused(
                f"{mixed[0][:80]!r} is {held[mixed[0]].dtype} while the embedding is {wanted}; save the "
                "model in one dtype.",
                tensors=mixed[:16],
            )


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that NaN equals NaN and -0 differs from 0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _zeros(shape: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: torch.zeros(shape)
