# SPDX-License-Identifier: Apache-2.0
"""What an engine refuses before it takes a sequence in. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from model_core.engine.requests import SequenceRequest
from model_core.engine.sampling import check_sampling
from model_core.errors import RequestRefused
from model_core.network.bank import ExpertBank, StateKey


def check_set(bank: ExpertBank, experts: Sequence[str], top_k: int, key: StateKey) -> tuple[str, ...]:
    """Refuses a key that is not that of the set.

    Returns:
        The experts in canonical order.

    Raises:
        RequestRefused: k is below 1, or the key describes another set, k or bank.
        ExpertNotResident: one of the experts is not in the bank.
    """
    if top_k < 1:
        raise RequestRefused("At least one expert must compute each token; set top_k to 1 or more.")
    if key != bank.state_key(experts, top_k=top_k, consumer=key.consumer):
        raise RequestRefused("The state key does not describe this expert set, k and bank; make it anew.")
    return key.experts


def check_request(request: SequenceRequest, bank: ExpertBank, *, max_context: int) -> None:
    """Refuses a request that can never run, whatever its expert set.

    Raises:
        RequestRefused: length, ids, weight or sampling are impossible.
    """
    n_prompt, vocabulary = len(request.prompt_ids), bank.shape.vocab_size
    if not n_prompt or n_prompt >= max_context:
        raise RequestRefused(
            f"The prompt has {n_prompt} tokens; it needs at least 1 and fewer than {max_context}.",
            prompt_tokens=n_prompt,
            max_context=max_context,
        )
    ids = (*request.prompt_ids, *(token for token, _ in request.sampling.logit_bias))
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise RequestRefused(
            "The prompt or its biases hold token ids outside the vocabulary.", vocab_size=vocabulary
        )
    if not 0.0 < request.weight < float("inf") or not 0 <= request.n_said <= n_prompt:
        raise RequestRefused("A positive weight and at most the prompt's tokens as said are needed.")
    check_sampling(request.sampling)
