# SPDX-License-Identifier: Apache-2.0
"""How well a deployment predicts given texts: which experts take part, and the arithmetic.

Scoring is a use like any other: it runs under the deployment's present composition or a subset of it, and
nothing of the texts is kept. This module knows neither leases nor threads; the host puts it between steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.hosting.errors import DeploymentNotHosted
from cluster.hosting.messages import ScoredText
from cluster.hosting.plan import Served
from model_core.evaluation.bits import bits_per_document
from model_core.network.bank import ExpertBank
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
