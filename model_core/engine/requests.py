# SPDX-License-Identifier: Apache-2.0
"""What goes into the engine and what comes out: plain values, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model_core.network.bank import StateKey

FinishReason = Literal["stop", "length"]

# One token's worth of attribution, in parts per million.
WHOLE_PPM = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_tokens: at most this many new tokens.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it.
        top_p: smallest set of tokens whose probability reaches it; 1 keeps all.
        top_k: only the k likeliest tokens; 0 keeps all.
        seed: of the draws; None draws by the request id.
        stop_ids: tokens that end the sequence (they are reported).
        logprobs: how many alternatives to report beside each token.
        logit_bias: (token, what is added to its logit before drawing); -100 all but forbids it.
        presence_penalty: taken off the logit of every token that was drawn before.
        frequency_penalty: the same, once for every time that it was drawn.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceRequest:
    """One sequence to continue.

    Attributes:
        request_id: unique among the engine's sequences.
        prompt_ids: token ids, at least one.
        experts: bundle digests that may compute it beside the public expert.
        top_k: experts per token, the public one counted.
        state_key: key of its states (``ExpertBank.state_key``).
        sampling: how tokens are drawn.
        weight: of the consumer tenant in the queue; twice the weight gets twice the tokens.
        shares_prefixes: whether other consumer tenants that say so too may find the states of this prompt,
            and this request theirs. Equal prompts then answer faster, which tells that they were asked.
        n_said: so many of the last prompt ids were drawn for this answer before (by a sequence that was
            restarted): draws and penalties go on from there.
    """

    request_id: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    experts: tuple[str, ...]
    top_k: int
    state_key: StateKey
    sampling: Sampling = field(default_factory=Sampling)
    weight: float = 1.0
    shares_prefixes: bool = False
    n_said: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """One new token of one sequence.

    Attributes:
        request_id: whose.
        token_id: the token.
        logprob: its natural log-probability under the model at temperature 1.
        top_logprobs: the likeliest alternatives with theirs, as many as the request asked for.
        attribution_ppm: what each expert (by digest, or ``"public"``) contributed: routing weights of the
            chosen experts, normalised per layer, averaged over layers; sums to exactly 1,000,000.
        finished: why the sequence ended with this token, or None.
    """

    request_id: str
    token_id: int = field(repr=False)
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = field(repr=False)
    attribution_ppm: dict[str, int]
    finished: FinishReason | None
