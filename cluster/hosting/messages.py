# SPDX-License-Identifier: Apache-2.0
"""What the gateway and a model host say to each other: one request, then a stream of chunks.

A host offers ``generate(admission, request) -> AsyncIterator[GenerationChunk]`` through its Serve handle.
The admission is the office's (``cluster.office.protocol.Admission``); the host trusts the gateway, for
both are platform code. Tokenising, chat templates and stop strings are the host's work, because only the
host holds the base's tokenizer. These documents cross processes: fields are only ever added. They hold
prompts and completions, so their ``repr`` hides them and nobody may log their dump (law 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "cancelled", "withdrawn", "stopped"]

MAX_STOPS = 16
MAX_CHOICES = 8
MAX_LOGPROBS = 20
MAX_TEXTS = 256
MAX_TEXT_CHARACTERS = 200_000


class Message(BaseModel):
    """A document of the generation protocol."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ChatTurn(Message):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = Field(repr=False)


class GenerationRequest(Message):
    """What to generate.

    Exactly one of ``prompt``, ``prompt_token_ids`` and ``turns`` is set. The host renders ``turns`` with
    ``render_turns`` unless the base's tokenizer brings its own template.

    Attributes:
        prompt: plain text to continue.
        prompt_token_ids: tokens to continue.
        turns: a conversation to answer.
        max_tokens: most new tokens per choice; 0 only echoes.
        n: number of choices; choice ``i`` is sampled with seed ``seed + i``.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        seed: sampling seed; None lets the host draw one.
        stop: texts that end a choice; the stop text itself is never emitted.
        logprobs: how many alternatives per token to report (0 reports the chosen token alone); None for none.
        ignore_eos: go on past the end-of-text token until ``max_tokens``, for measurements.
        echo: give the prompt back before the answer, with its log-probabilities where ``logprobs`` asks for
            them; then every scored token of the prompt counts as a computed one.
        top_k: draw from the k likeliest tokens; 0 from all.
        logit_bias: added to the logits, as (token id, bias).
        presence_penalty: taken off the logit of every token that was said.
        frequency_penalty: taken off as often as it was said.
        resumed: where another host began the answer: the tokens that it released of each choice, None for a
            choice that has ended. Only what follows is generated; ``max_tokens`` counts them in.
    """

    prompt: str | None = Field(default=None, repr=False)
    prompt_token_ids: tuple[int, ...] | None = Field(default=None, repr=False)
    turns: tuple[ChatTurn, ...] | None = Field(default=None, repr=False)
    max_tokens: int = Field(ge=0)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    stop: tuple[str, ...] = Field(default=(), repr=False, max_length=MAX_STOPS)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    ignore_eos: bool = False
    echo: bool = False
    top_k: int = Field(default=0, ge=0)
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    resumed: tuple[tuple[int, ...] | None, ...] = Field(default=(), repr=False)

    @property
    def open_choices(self) -> tuple[int, ...]:
        """Numbers of the choices that are to be generated."""
        return tuple(n for n in range(self.n) if not self.resumed or self.resumed[n] is not None)

    def said(self, index: int) -> tuple[int, ...]:
        """Tokens of a choice that another host released."""
        return (self.resumed[index] or ()) if self.resumed else ()

    @property
    def scores_prompt(self) -> bool:
        """Whether the tokens of the prompt are computed for their log-probabilities."""
        return self.echo and self.logprobs is not None


class TokenLogprob(Message):
    """The log-probability (natural log) of one token and of its best alternatives.

    Attributes:
        token: the token's text.
        token_id: its number in the vocabulary.
        logprob: of the chosen token; None for a prompt's first, which nothing stands before.
        top: alternatives, best first, as (text, token id, logprob).
    """

    token: str = Field(repr=False)
    token_id: int
    logprob: float | None
    top: tuple[tuple[str, int, float], ...] = Field(default=(), repr=False)


class PromptEcho(Message):
    """The prompt, given back.

    Attributes:
        text: its text, without what the host opened it with.
        logprobs: one per token of the text when asked for.
    """

    text: str = Field(repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = Field(default=None, repr=False)


class Segment(Message):
    """A run of a choice's tokens that were computed under one composition.

    Attributes:
        index: which choice.
        part: ``answer``, or ``prompt`` for tokens of the prompt that were scored (counted from 0 too).
        epoch: of the register when the run began.
        to_epoch: of the register when it ended, where that is a later one. In between nothing of this choice
            was computed under another composition, though the register may have asked for one for a moment.
        composition_digest: of the experts that were allowed.
        from_token: first completion token of the run (counted from 0).
        to_token: one past the last.
        experts: routed weight per expert name (``public`` for the base's own), in millionths of a token;
            sums to ``(to_token - from_token) * 1_000_000``.
    """

    index: int = 0
    part: Literal["answer", "prompt"] = "answer"
    epoch: int
    to_epoch: int | None = None
    composition_digest: str
    from_token: int
    to_token: int
    experts: dict[str, int]


def joined_segments(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Segments of one choice in order, with neighbours of the same composition made one."""
    runs: list[list[Segment]] = []
    for segment in segments:
        last = runs[-1][-1] if runs else None
        if last is not None and (last.index, last.part, last.composition_digest, last.to_token) == (
            segment.index,
            segment.part,
            segment.composition_digest,
            segment.from_token,
        ):
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return tuple(run[0] if len(run) == 1 else _one_segment(run) for run in runs)


def _one_segment(run: Sequence[Segment]) -> Segment:
    """Neighbours of one composition as one."""
    first, last = run[0], run[-1]
    experts: dict[str, int] = {}
    to_epoch = first.to_epoch
    for segment in run:
        for name, ppm in segment.experts.items():
            experts[name] = experts.get(name, 0) + ppm
    for segment in run[1:]:
        ended = segment.to_epoch or segment.epoch
        to_epoch = ended if ended != first.epoch else to_epoch
    return first.model_copy(update={"to_token": last.to_token, "to_epoch": to_epoch, "experts": experts})


def added_shares(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    """Sums of two shares by name."""
    total = dict(first)
    for name, ppm in second.items():
        total[name] = total.get(name, 0) + ppm
    return total


class Ended(Message):
    """Why an answer ended before its time.

    Attributes:
        code: stable, e.g. ``key_revoked``.
        sentence: what to do next.
    """

    code: str
    sentence: str


class GenerationAccount(Message):
    """What the host says about a finished request; the gateway passes it on as ``marketplace``.

    Attributes:
        request_id: the admission's.
        prompt_tokens: tokens of the prompt as the host counted them.
        completion_tokens: over all choices.
        segments: by choice, then by token.
        scored_tokens: tokens of the prompt whose log-probabilities were computed.
        exact: whether no bit of the answer depended on what else was computed beside it.
        continued_as: further requests that went on with the answer when a host was lost, in order.
        ended: set if the answer was ended from outside: its deployment, key, tenant or budget is gone.
    """

    request_id: str
    continued_as: tuple[str, ...] = ()
    scored_tokens: int = 0
    exact: bool = False
    ended: Ended | None = None
    prompt_tokens: int
    completion_tokens: int
    segments: tuple[Segment, ...]


class GenerationChunk(Message):
    """Some new tokens of one choice.

    The text of a choice is the concatenation of its chunks' ``text``; a chunk may carry tokens whose text
    is still held back (half a character, a possible stop text). The last chunk of a request (not of each
    choice) carries ``marketplace``; it may carry no tokens.

    Attributes:
        index: which choice.
        token_ids: new tokens, at least one unless the chunk only finishes.
        text: new text.
        logprobs: one per token when asked for.
        finish_reason: set on the choice's last chunk.
        marketplace: set on the request's last chunk alone.
        prompt_tokens: set on the first chunk, so that a client that leaves early can still be told.
        segments: what the new tokens were computed with, for an answer whose end another host computes.
        prompt: set on the first chunk of a request that asks for it; it belongs to every choice.
        exact: set on the first chunk: whether no bit of the answer depends on what is computed beside it.
    """

    index: int = 0
    token_ids: tuple[int, ...] = Field(default=(), repr=False)
    text: str = Field(default="", repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = Field(default=None, repr=False)
    finish_reason: FinishReason | None = None
    marketplace: GenerationAccount | None = None
    prompt_tokens: int | None = None
    segments: tuple[Segment, ...] = ()
    prompt: PromptEcho | None = Field(default=None, repr=False)
    exact: bool | None = None


class ScoredText(Message):
    """One text's score.

    Attributes:
        bits: negative log2 probability of all its tokens.
        size_bytes: UTF-8 bytes of the text.
        tokens: tokens that were scored.
    """

    bits: float
    size_bytes: int
    tokens: int


class ScoreAnswer(Message):
    """Scores in the order of the texts, and what they were computed with.

    Attributes:
        epoch: of the host's snapshot when the last text was scored.
        composition_digest: the deployment's composition then.
        experts: names of the experts that took part besides the base.
        documents: one score per text.
    """

    epoch: int
    composition_digest: str
    experts: tuple[str, ...]
    documents: tuple[ScoredText, ...]


def render_turns(turns: tuple[ChatTurn, ...]) -> str:
    r"""Renders a conversation as the plain text that bases without a template of their own continue.

    One paragraph per turn, ``role: content``, then an open ``assistant:`` line.

    >>> render_turns((ChatTurn(role="user", content="Hi"),))
    'user: Hi\n\nassistant:'
    """
    return "".join(f"{turn.role}: {turn.content}\n\n" for turn in turns) + "assistant:"
