# SPDX-License-Identifier: Apache-2.0
"""From a request's words to what the engine takes: token ids and sampling."""

from __future__ import annotations

import asyncio

from cluster.hosting.chat import ChatFormat
from cluster.hosting.errors import PromptRefused
from cluster.hosting.messages import GenerationRequest
from model_core.engine.requests import Sampling
from model_core.text.tokenizer import TextTokenizer

# Milliseconds of work; longer texts must not hold up the event loop that renews the lease.
_SHORT_CHARACTERS = 16_384
# More than any vocabulary has; what is larger says the same and fits no tensor.
_ALL_TOKENS = 2**31 - 1


async def read_prompt(
    request: GenerationRequest, tokenizer: TextTokenizer, chat: ChatFormat, *, max_context: int
) -> tuple[int, ...]:
    """Token ids of a request's prompt, made without holding up the event loop.

    Args:
        request: what was asked.
        tokenizer: the base's.
        chat: how conversations become prompts.
        max_context: tokens of the longest prompt and its answer; a text that cannot be as short as that is
            refused unread.

    Raises:
        PromptRefused: token ids that are none, or a text that is too long.
    """
    characters = sum(len(turn.content) for turn in request.turns or ()) + len(request.prompt or "")
    if characters > max_context * tokenizer.longest_token:
        raise PromptRefused(
            f"The prompt is longer than any text of {max_context - 1} tokens; at most those fit.",
            max_context=max_context,
        )
    if characters <= _SHORT_CHARACTERS:
        return prompt_ids_of(request, tokenizer, chat)
    return await asyncio.to_thread(prompt_ids_of, request, tokenizer, chat)


def prompt_ids_of(
    request: GenerationRequest, tokenizer: TextTokenizer, chat: ChatFormat | None = None
) -> tuple[int, ...]:
    """Token ids of a request's prompt; text is opened by the end-of-text token, as in training.

    Raises:
        PromptRefused: token ids that are none.
    """
    if request.prompt_token_ids is not None:
        ids = request.prompt_token_ids
        if not ids or min(ids) < 0 or max(ids) >= tokenizer.vocab_size:
            raise PromptRefused(
                "The prompt's token ids are empty or outside the vocabulary of this base.",
                vocab_size=tokenizer.vocab_size,
            )
        return ids
    if request.prompt is None:
        return (chat or ChatFormat(tokenizer)).ids(request.turns or ())
    return (tokenizer.begin_id, *tokenizer.encode(request.prompt))


def sampling_of(
    request: GenerationRequest, max_tokens: int, index: int, tokenizer: TextTokenizer
) -> Sampling:
    """How one choice of a request is drawn.

    Args:
        request: what was asked.
        max_tokens: what the reservation and the context leave of it.
        index: the choice's number; it moves the seed.
        tokenizer: knows the end of text.
    """
    return Sampling(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=None if request.seed is None else request.seed + index,
        stop_ids=() if request.ignore_eos else (tokenizer.end_of_text_id,),
        logprobs=request.logprobs or 0,
        top_k=min(request.top_k, _ALL_TOKENS),
        logit_bias=request.logit_bias,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
    )
