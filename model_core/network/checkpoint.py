# SPDX-License-Identifier: Apache-2.0
"""Weights between files and modules: safetensors only, mapped, never copied on reading.

Files are mapped privately (copy-on-write): all processes of a machine share one copy of the pages, and what
one process writes into its tensors reaches neither the file nor another process. Nothing here checks
digests or seals: that is packing's work and comes before (``check_bundle``, ``ArtifactStore.get_bundle``).
What is checked is what only tensors can show: names, shapes, dtypes and that every number is finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model_core.errors import (
    BundleNotSafetensors,
    BundleWrongBase,
    BundleWrongShape,
    TensorsNotFinite,
    TensorsOutOfRange,
)
from model_core.network.attention import rotary_tables
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.finite import not_finite
from model_core.packing.forms import FfnForm
from model_core.packing.manifest import (
    BASE_WEIGHTS_FILE,
    EXPERT_WEIGHTS_FILE,
    MANIFEST_FILE,
    BaseManifest,
    ExpertManifest,
    ModelShape,
    parse_base_manifest,
    parse_expert_manifest,
)

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})
_FP32 = frozenset({torch.float32})


def load_decoder(file: Path, shape: ModelShape) -> Decoder:
    """Maps ``base.safetensors`` into a decoder whose parameters do not require gradients.

    Args:
        file: the weights, already verified.
        shape: what the base's manifest says.

    Raises:
        BundleNotSafetensors: the file cannot be read.
        BundleWrongShape: a tensor is missing, unknown, or of another shape or dtype.
        TensorsNotFinite: NaN or infinity.
    """
    with torch.device("meta"):
        decoder = Decoder(shape)
    _fill(decoder, _mapped(file))
    decoder.rope_cos, decoder.rope_sin = rotary_tables(shape)
    return decoder.requires_grad_(False).eval()


def load_expert(file: Path, shape: ModelShape, *, form: FfnForm | None = None) -> Expert:
    """Maps ``expert.safetensors`` into an expert whose parameters do not require gradients.

    Args:
        file: the weights, already verified.
        shape: sizes of the base that the expert must fit.
        form: how the manifest says that its networks are stored; None reads it from the tensors.

    Raises:
        BundleNotSafetensors: the file cannot be read.
        BundleWrongShape: a tensor is missing, unknown, or of another shape or dtype.
        TensorsNotFinite: NaN or infinity.
        TensorsOutOfRange: a scale that divides or multiplies is not above 0.
    """
    tensors = _mapped(file)
    form = form or form_of_tensors(tensors, shape)
    problem = form.problem(shape.d_model) or form.misfit(shape.d_ffn)
    if problem:
        raise BundleWrongShape(f"The expert does not fit its base: {problem}.", tensors=[])
    gated = any(name.endswith(".gate.bias") for name in tensors)
    with torch.device("meta"):
        expert = Expert.of_form(form, n_layers=shape.n_layers, d_model=shape.d_model, gated=gated)
    if gated:
        # A gate that does not standardise leaves mean and scale out of its file.
        for layer in range(shape.n_layers):
            tensors.setdefault(f"layers.{layer}.gate.mean", torch.zeros(shape.d_model))
            tensors.setdefault(f"layers.{layer}.gate.scale", torch.ones(shape.d_model))
    _fill(expert, tensors, one_dtype=True)
    _check_scales(tensors)
    return expert.requires_grad_(False).eval()


def form_of_tensors(tensors: Mapping[str, Tensor], shape: ModelShape) -> FfnForm:
    """What form the networks of a weights file have, by the tensors of its first layer.

    Loading compares every tensor with that form afterwards, so a mixture of forms in one file is refused.

    Args:
        tensors: all tensors of the file.
        shape: sizes of the base; what cannot be told from the tensors is taken from it.
    """
    part = {
        name.removeprefix("layers.0.ffn."): one for name, one in tensors.items() if "layers.0.ffn." in name
    }
    factor, weight = part.get("gate.b"), part.get("gate.weight")
    if factor is not None and factor.dim() == 2:
        return FfnForm(kind="low_rank", d_ffn=factor.shape[0], rank=factor.shape[1])
    first = part.get("pieces.0.gate.weight")
    if first is not None and first.dim() == 2:
        pieces = len({name.split(".")[1] for name in part if name.startswith("pieces.")})
        return FfnForm(kind="split", d_ffn=pieces * first.shape[0], pieces=pieces)
    if weight is None or weight.dim() != 2:
        return FfnForm(d_ffn=shape.d_ffn)
    if weight.dtype == torch.int8:
        return FfnForm(kind="int8", d_ffn=weight.shape[0])
    return FfnForm(kind="narrow" if weight.shape[0] < shape.d_ffn else "full", d_ffn=weight.shape[0])


def load_base_folder(folder: Path) -> tuple[BaseManifest, Decoder]:
    """Loads a verified base folder (see ``load_decoder`` for what it raises)."""
    manifest = parse_base_manifest((folder / MANIFEST_FILE).read_bytes())
    return manifest, load_decoder(folder / BASE_WEIGHTS_FILE, manifest.shape)


def load_expert_folder(folder: Path, base_digest: str, shape: ModelShape) -> tuple[ExpertManifest, Expert]:
    """Loads a verified expert folder for one base.

    Raises:
        BundleWrongBase: the expert was trained against another base.
        BundleNotSafetensors, BundleWrongShape, TensorsNotFinite, TensorsOutOfRange: as ``load_expert``.
    """
    manifest = parse_expert_manifest((folder / MANIFEST_FILE).read_bytes())
    if manifest.base_digest != base_digest:
        raise BundleWrongBase(
            f"The expert {manifest.name} was trained against another base; it fits only that one.",
            expert_base=manifest.base_digest,
            base=base_digest,
        )
    return manifest, load_expert(folder / EXPERT_WEIGHTS_FILE, shape, form=manifest.form)


def save_decoder(decoder: Decoder, file: Path) -> None:
    """Writes ``base.safetensors``; equal weights give equal bytes."""
    _save(decoder, file)


def save_expert(expert: Expert, file: Path) -> None:
    """Writes ``expert.safetensors``; equal weights give equal bytes."""
    _save(expert, file)


def _save(module: nn.Module, file: Path) -> None:
    tensors = {}
    for name, tensor in module.state_dict().items():
        dtype = torch.float32 if _is_exact(name) else tensor.dtype
        tensors[name] = tensor.detach().to(device="cpu", dtype=dtype).contiguous()
    save_file(tensors, file)


def _mapped(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file, device="cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleNotSafetensors(
            f"The weights file {file.name} cannot be read as safetensors; fetch the bundle again."
        ) from error


def _is_exact(name: str) -> bool:
    """Whether a tensor decides between experts or scales integers: fp32 in every bundle, never rounded."""
    if ".ffn." in name:
        return name.endswith(".scale")
    return ".router." in name or ".gate." in name


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], *, one_dtype: bool = False) -> None:
    """Puts mapped tensors in the place of a module's (meta) parameters, refusing what does not fit.

    Args:
        module: what is filled.
        tensors: exactly its tensors.
        one_dtype: whether all weights must be of one dtype.
    """
    wanted = module.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    seen: set[torch.dtype] = set()
    for name in sorted(wanted.keys() & tensors.keys()):
        dtypes = _FP32 if _is_exact(name) else _FLOATS
        if wanted[name].dtype == torch.int8:
            dtypes = frozenset({torch.int8})
        elif not _is_exact(name):
            seen.add(tensors[name].dtype)
        mixed = one_dtype and len(seen) > 1
        if tensors[name].shape != wanted[name].shape or tensors[name].dtype not in dtypes or mixed:
            wrong.append(name)
    if wrong:
        raise BundleWrongShape(
            "Tensors are missing, unknown, or of another shape or dtype than the manifest implies: "
            f"{', '.join(wrong[:4])}.",
            tensors=wrong[:16],
        )
    if rotten := not_finite(tensors):
        raise TensorsNotFinite(
            f"Weights hold NaN or infinity in {', '.join(rotten[:4])}; train the expert again.",
            tensors=rotten[:16],
        )
    module.load_state_dict(dict(tensors), assign=True)


def _check_scales(tensors: Mapping[str, Tensor]) -> None:
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(".scale")}
    if flat := [name for name, scale in scales.items() if ".ffn." not in name and (scale == 0).any()]:
        raise TensorsNotFinite("A gate divides by a scale of zero; train the gates again.", tensors=flat[:8])
    if low := [name for name, scale in scales.items() if ".ffn." in name and (scale <= 0).any()]:
        raise TensorsOutOfRange(
            f"A scale of integer weights is not above 0 in {low[0]}; quantise the expert again.",
            tensors=low[:8],
        )
