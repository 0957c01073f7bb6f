# SPDX-License-Identifier: Apache-2.0
"""Weighs one expert beside the public one: what only a forward pass can show of a stranger's weights.

The pair {public, expert} with k = 2 reads public text that the owner did not fit on (the half that
calibration keeps, see ``training.finishing.public_halves``), or random tokens where the base carries no text.
Measured are the expert's share of routing and of output, the length of its output against the public one's,
and bits per byte; beside them stand two bounds by Cauchy-Schwarz on what its router row can ever do. Nothing
here judges a figure (``packing.admission`` does) and nothing here can see text that it does not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model_core.errors import ExpertOverflows
from model_core.evaluation.bits import bits_per_byte, bits_per_document, cut_documents
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.mixture import LayerExperts, Routing
from model_core.network.router import gate_logits, prefix_mean
from model_core.packing.admission import AdmissionReport, LayerReading
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer

_SHARES = frozenset({"share", "output_share", "gate"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSize:
    """How much is read.

    Attributes:
        documents: public documents, at most.
        characters: beginning of each.
        tokens: longest sequence.
        random_rows: rows of random tokens where there is no text.
        random_tokens: tokens of each.
    """

    documents: int = 16
    characters: int = 1600
    tokens: int = 1024
    random_rows: int = 16
    random_tokens: int = 64


@dataclass(kw_only=True)
class _Tally:
    """Sums over tokens, fp64 ``[L]`` each."""

    n_layers: int
    tokens: int = 0
    row_shares: list[float] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, layer: int, **terms_T: Tensor) -> None:
        """Adds one sequence's terms of a layer."""
        for name, term_T in terms_T.items():
            total_L = self.sums.setdefault(name, torch.zeros(self.n_layers, dtype=torch.float64))
            total_L[layer] += term_T.double().sum().cpu()

    def total(self, name: str) -> float:
        """Sum over tokens and layers so far."""
        return float(self.sums[name].sum()) if name in self.sums else 0.0

    def mean(self, name: str) -> list[float]:
        """Means over tokens, layer by layer."""
        means: list[float] = (self.sums[name] / self.tokens).tolist()
        return means


def weigh_expert(
    decoder: Decoder,
    expert: Expert,
    public: Sequence[Document],
    tokenizer: TextTokenizer | None,
    *,
    seed: int = 0,
    size: ProbeSize | None = None,
) -> AdmissionReport:
    """Measures what an expert does beside the public one.

    Args:
        decoder: the base, fp32.
        expert: a stranger's; finite, of the base's sizes, on the base's device.
        public: public documents that no owner fits on; empty where the base carries none.
        tokenizer: the base's; None where there is no text.
        seed: of the random tokens; one that the owner could not know when it sealed.
        size: how much is read.

    Returns:
        The report; equal weights, text and torch build give equal figures.

    Raises:
        ExpertOverflows: finite weights computed something that is no number.
    """
    size = size or ProbeSize()
    documents = cut_documents(public[: size.documents], size.characters)
    if documents and tokenizer is not None:
        rows = _text_rows(decoder, documents, tokenizer, size)
    else:
        documents, rows = (), _random_rows(decoder, seed, size)
    tally = _run(decoder, expert, rows)
    excess = 0.0
    if documents and tokenizer is not None:
        base, pair = (
            bits_per_byte(
                bits_per_document(
                    decoder,
                    documents,
                    tokenizer,
                    experts=experts,
                    top_k=2,
                    window_tokens=size.tokens,
                    batch_tokens=size.tokens,  # logits of more would need more memory than the model
                )
            )
            for experts in ((), (expert,))
        )
        excess = pair / base - 1
    readings = _readings(decoder, expert, tally)
    _check_finite(readings, excess)
    return AdmissionReport(
        weighed=bool(documents),
        probe="public text" if documents else "random tokens",
        documents=len(rows),
        tokens=tally.tokens,
        mean_share=_share(sum(reading["share"] for reading in readings) / len(readings)),
        mean_output_share=_share(sum(reading["output_share"] for reading in readings) / len(readings)),
        max_document_share=_share(max(tally.row_shares)),
        public_excess=excess,
        layers=tuple(
            LayerReading(**{name: _share(one[name]) if name in _SHARES else one[name] for name in one})
            for one in readings
        ),
    )


def largest_inputs(decoder: Decoder) -> list[float]:
    """Longest input that any text can give the mixture of each layer, by the norms' weights alone.

    A root-mean-square norm puts out at most ``max |weight| * sqrt(D)``. Where norms stand before, that is the
    mixture's input; where they stand after, the input is an embedding and what earlier norms have added.
    """
    width = decoder.shape.d_model**0.5
    longest: list[float] = []
    stream = float(decoder.embed.weight.detach().float().norm(dim=-1).max())
    for index in range(decoder.shape.n_layers):
        layer = decoder.layer(index)
        attention, mixture = (
            float(norm.weight.detach().float().abs().max()) * width
            for norm in (layer.attn_norm, layer.ffn_norm)
        )
        if decoder.shape.norm_before:
            longest.append(mixture)
        else:
            longest.append(stream + attention)
            stream += attention + mixture
    return longest


def _run(decoder: Decoder, expert: Expert, rows: Sequence[Tensor]) -> _Tally:
    """Runs the pair over rows of token ids and sums what each layer shows."""
    panels = decoder.panels((expert,))
    tally = _Tally(n_layers=decoder.shape.n_layers)

    def watch(layer: int, x_BSD: Tensor, routing: Routing | None) -> None:
        assert routing is not None  # noqa: S101  (two experts: a router always runs)
        tally.add(layer, **_terms(x_BSD, routing, panels[layer]))

    with torch.no_grad():
        for row in rows:
            before = tally.total("share")
            decoder.hidden(row[None].to(decoder.embed.weight.device), (expert,), top_k=2, observe=watch)
            tally.tokens += len(row)
            tally.row_shares.append((tally.total("share") - before) / (len(row) * tally.n_layers))
    return tally


def _terms(x_BSD: Tensor, routing: Routing, panel: LayerExperts) -> dict[str, Tensor]:
    x_TD = x_BSD.flatten(0, 1)
    weights_T2 = routing.weights_TE.double()
    weights_T2 = weights_T2 / weights_T2.sum(-1, keepdim=True)
    lengths_T2 = torch.stack([ffn(x_TD).double().norm(dim=-1) for ffn in panel.ffns], dim=-1)
    parts_T2 = weights_T2 * lengths_T2
    gate_T = torch.ones(x_TD.shape[0], dtype=torch.float64, device=x_TD.device)
    if panel.gated:
        gate_T = gate_logits(prefix_mean(x_BSD).flatten(0, 1), panel.rows)[:, 1].sigmoid()
    return {
        "share": weights_T2[:, 1],
        "output_share": parts_T2[:, 1] / parts_T2.sum(-1).clamp(min=1e-30),
        "expert_length": lengths_T2[:, 1],
        "public_length": lengths_T2[:, 0],
        "input_square": x_TD.double().square().sum(-1),
        "gate": gate_T,
    }


def _readings(decoder: Decoder, expert: Expert, tally: _Tally) -> list[dict[str, float]]:
    means = {name: tally.mean(name) for name in tally.sums}
    readings = []
    for index, longest in enumerate(largest_inputs(decoder)):
        own_D, public_D = (
            part.router.row.detach().double() for part in (expert.layer(index), decoder.layer(index))
        )
        length = float((own_D - public_D).norm())
        readings.append(
            {
                "share": means["share"][index],
                "output_share": means["output_share"][index],
                "gain": means["expert_length"][index] / max(means["public_length"][index], 1e-30),
                "row_logit": length * means["input_square"][index] ** 0.5,
                "worst_logit": length * longest,
                "gate": means["gate"][index],
            }
        )
    return readings


def _text_rows(
    decoder: Decoder, documents: Sequence[Document], tokenizer: TextTokenizer, size: ProbeSize
) -> list[Tensor]:
    limit = min(size.tokens, decoder.shape.max_positions)
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [torch.tensor([tokenizer.end_of_text_id, *ids][:limit]) for ids in encoded]


def _random_rows(decoder: Decoder, seed: int, size: ProbeSize) -> list[Tensor]:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    width = min(size.random_tokens, decoder.shape.max_positions)
    drawn = torch.randint(decoder.shape.vocab_size, (size.random_rows, width), generator=generator)
    return list(drawn)


def _check_finite(readings: Sequence[dict[str, float]], excess: float) -> None:
    for index, reading in enumerate(readings):
        for name, value in reading.items():
            if not abs(value) < float("inf"):
                raise ExpertOverflows(
                    f"Beside the public expert, layer {index} computes something that is no number, though "
                    "every weight is one. Train the expert again from the base.",
                    layer=index,
                    figure=name,
                )
    if not abs(excess) < float("inf"):
        raise ExpertOverflows(
            "Beside the expert, the probabilities of public text are no numbers. Train the expert again.",
            figure="public_excess",
        )


def _share(value: float) -> float:
    """A mean of shares; rounding may carry it past its ends."""
    return min(max(value, 0.0), 1.0)
