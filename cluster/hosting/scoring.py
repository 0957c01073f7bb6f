# SPDX-License-Identifier: Apache-2.0
"""How well a deployment predicts given texts: which experts take part, and the arithmetic.

Scoring is a use like any other: it runs under the deployment's present composition or a subset of it, and
nothing of the texts is kept. This module knows neither leases nor threads; the host puts it between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.hosting.errors import DeploymentNotHosted
from cluster.hosting.messages import ScoredText, TokenLogprob
from cluster.hosting.plan import Served
from model_core.engine.attribution import to_ppm
from model_core.evaluation.bits import bits_per_document
from model_core.network.bank import ExpertBank
from model_core.network.mixture import Routing, plan_uniform
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer


def chosen_experts(served: Served | None, names: Sequence[str] | None, deployment: str) -> tuple[str, ...]:
    """Bundle digests of the experts to use, in canonical order.

    Args:
        served: what the deployment may be computed with at present.
        names: a subset by name; None for all, empty for the base alone.
        deployment: its name, for the refusal.

    Raises:
        DeploymentNotHosted: nothing may answer, or a name is not among the permitted.
    """
    if served is None or not served.allowed:
        raise DeploymentNotHosted("This deployment may not be computed at present.", deployment=deployment)
    if names is None:
        return served.experts
    known = {name: digest for digest, name in served.names.items()}
    missing = sorted(set(names) - set(known))
    if missing:
        raise DeploymentNotHosted(
            f"Not permitted in this deployment at present: {', '.join(missing[:8])}. "
            "See: marketplace deployment show",
            deployment=deployment,
            experts=missing[:8],
        )
    return tuple(sorted(known[name] for name in set(names)))


def score_texts(
    bank: ExpertBank, tokenizer: TextTokenizer, texts: Sequence[str], experts: Sequence[str], top_k: int
) -> tuple[ScoredText, ...]:
    """Scores texts; call it where nothing else touches the bank."""
    documents = [Document(id=str(index), text=text) for index, text in enumerate(texts)]
    scores = bits_per_document(
        bank.decoder,
        documents,
        tokenizer,
        experts=[bank.expert(digest) for digest in experts],
        top_k=min(top_k, len(experts) + 1),
        batch_tokens=2048,
    )
    return tuple(
        ScoredText(bits=score.bits, size_bytes=score.size_bytes, tokens=score.tokens) for score in scores
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredPrompt:
    """The tokens of a prompt under one expert set.

    Attributes:
        logprobs: of every token but the first, natural.
        top: the likeliest alternatives at those places, best first, as (token id, log-probability).
        experts: what each expert (by digest, or ``public``) contributed to them, in millionths of a token.
    """

    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, float], ...], ...]
    experts: dict[str, int]


@torch.inference_mode()
def score_prompt(
    bank: ExpertBank, ids: Sequence[int], experts: Sequence[str], top_k: int, alternatives: int
) -> ScoredPrompt:
    """Scores a prompt in one pass; call it where nothing else touches the bank.

    Args:
        bank: weights.
        ids: token ids, at least one.
        experts: bundle digests beside the public expert.
        top_k: experts per token, the public one counted.
        alternatives: how many of the likeliest tokens to report at every place.

    Raises:
        ExpertNotResident: an expert is not in the bank.
    """
    columns = bank.columns(experts)
    ids_1S = torch.tensor([list(ids)], dtype=torch.long, device=bank.decoder.embed.weight.device)
    shares_SE = torch.zeros(len(ids), len(bank.names()), dtype=torch.float64)

    def observe(_layer: int, _inner: Tensor, routing: Routing | None) -> None:
        if routing is None:
            shares_SE[:, 0] += 1.0
        else:
            weights_SE = routing.weights_TE.double().cpu()
            shares_SE.add_(weights_SE / weights_SE.sum(-1, keepdim=True))

    plan = plan_uniform(columns, min(top_k, len(columns)), ids_1S.device, renormalise=bank.shape.renormalise)
    hidden_SD = bank.decoder.run(ids_1S, bank.panels(), plan, observe=observe)[0]
    chances_SV = torch.log_softmax(bank.decoder.logits(hidden_SD[:-1]).float(), dim=-1)
    own = chances_SV.gather(-1, ids_1S[0, 1:, None]).squeeze(-1).tolist()
    best = chances_SV.topk(min(alternatives, chances_SV.shape[-1]), dim=-1)
    experts_ppm: dict[str, int] = {}
    for row in to_ppm(shares_SE[:-1].numpy(), bank.names()):
        for name, ppm in row.items():
            experts_ppm[name] = experts_ppm.get(name, 0) + ppm
    top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ScoredPrompt(
        logprobs=tuple(own),
        top=tuple(tuple(zip(numbers, values, strict=True)) for numbers, values in top),
        experts=experts_ppm,
    )


def scored_tokens(
    tokenizer: TextTokenizer, ids: Sequence[int], scored: ScoredPrompt
) -> tuple[TokenLogprob, ...]:
    """A prompt's scores in the form of the protocol, its first token without one."""
    logprobs = (None, *scored.logprobs)
    tops = ((), *scored.top)
    return tuple(
        TokenLogprob(
            token=tokenizer.decode([token_id]),
            token_id=token_id,
            logprob=logprob,
            top=tuple((tokenizer.decode([other]), other, value) for other, value in top),
        )
        for token_id, logprob, top in zip(ids, logprobs, tops, strict=True)
    )
