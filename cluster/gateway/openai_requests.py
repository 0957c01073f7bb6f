# SPDX-License-Identifier: Apache-2.0
"""What OpenAI clients may ask: the parameters that are honoured, and those refused with the reason.

A parameter that would change the answer and is not offered is refused instead of ignored, since a silent
difference is worse than an error. Parameters that do not touch the answer (``user``, ``metadata``) are
accepted and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.gateway.errors import UnsupportedParameter
from cluster.hosting.messages import MAX_CHOICES, MAX_LOGPROBS, MAX_STOPS, ChatTurn, GenerationRequest

DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 64
MAX_BIASES = 300

_DROPPED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier"})

#: Parameters of the OpenAI API that are not offered: the values that ask for nothing, and what to do.
_NOT_OFFERED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "best_of": ((1, None), "best_of is not offered: ask for n choices and choose among them."),
    "suffix": (("", None), "suffix is not offered: the models continue text, they do not fill gaps."),
    "tools": (([], None), "Tools are not offered: the models answer with text alone."),
    "tool_choice": (("none", "auto", None), "Tools are not offered: the models answer with text alone."),
    "parallel_tool_calls": ((True, False, None), "Tools are not offered."),
    "functions": (([], None), "Functions are not offered: the models answer with text alone."),
    "function_call": (
        ("none", "auto", None),
        "Functions are not offered: the models answer with text alone.",
    ),
    "response_format": (({"type": "text"}, None), "response_format is not offered: answers are plain text."),
    "modalities": ((["text"], None), "Only text is offered."),
    "audio": ((None,), "Audio is not offered."),
    "prediction": ((None,), "prediction is not offered: leave it out."),
    "reasoning_effort": ((None,), "reasoning_effort is not offered: leave it out."),
    "verbosity": ((None,), "verbosity is not offered: leave it out."),
    "web_search_options": ((None,), "Web search is not offered."),
    "store": ((False, None), "Nothing is ever stored here: leave store out."),
}


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    include_usage: bool = False


class _Parameters(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=200)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    top_k: int | None = Field(default=None, ge=-1)
    presence_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    frequency_penalty: float | None = Field(default=None, ge=-2.0, le=2.0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MAX_BIASES)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage event."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _common(self) -> dict[str, Any]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or any(not stop or len(stop) > 200 for stop in stops):
            raise UnsupportedParameter(
                f"stop takes up to {MAX_STOPS} texts of 1 to 200 characters.", param="stop"
            )
        return {
            "n": self.n or 1,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "seed": self.seed,
            "stop": stops,
            "ignore_eos": bool(self.ignore_eos),
            "top_k": max(0, self.top_k or 0),
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logit_bias": _biases(self.logit_bias or {}),
        }


class CompletionParameters(_Parameters):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(repr=False)
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None

    def generations(self, max_tokens: int) -> list[GenerationRequest]:
        """What hosts are asked: one request per prompt, in order.

        Raises:
            UnsupportedParameter: no prompt, too many, or nothing to generate and nothing to echo.
        """
        if max_tokens < 1 and not self.echo:
            raise UnsupportedParameter("max_tokens is at least 1 unless echo is true.", param="max_tokens")
        common = self._common() | {
            "max_tokens": max_tokens,
            "logprobs": self.logprobs,
            "echo": bool(self.echo),
        }
        prompt = self.prompt
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
        prompts: list[Any] = list(prompt) if several else [prompt]
        if len(prompts) > MAX_PROMPTS:
            raise UnsupportedParameter(f"At most {MAX_PROMPTS} prompts go in one request.", param="prompt")
        if not all(prompts):
            raise UnsupportedParameter(
                "The prompt is empty. Send a text or a list of tokens.", param="prompt"
            )
        return [
            GenerationRequest(prompt=one, **common)
            if isinstance(one, str)
            else GenerationRequest(prompt_token_ids=tuple(one), **common)
            for one in prompts
        ]

    def wanted_tokens(self, default: int) -> int:
        """Most new tokens per choice; OpenAI's default of this door is 16 whatever the installation's."""
        del default
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens


class TextPart(BaseModel):
    """A piece of a message; only text is offered."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["text"]
    text: str = Field(repr=False)


class ChatMessage(BaseModel):
    """One message of a chat request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] = Field(repr=False)
    tool_calls: Any = Field(default=None, repr=False)
    function_call: Any = Field(default=None, repr=False)
    audio: Any = Field(default=None, repr=False)

    def turn(self) -> ChatTurn:
        """The message as the host takes it.

        Raises:
            UnsupportedParameter: it says something besides its text, which the model would not see.
        """
        for name in ("tool_calls", "function_call", "audio"):
            if getattr(self, name):
                raise UnsupportedParameter(
                    f"A message carries {name}, which is not offered: send its text alone.",
                    param=f"messages.{name}",
                )
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return ChatTurn(role=self.role, content=text)


class ChatParameters(_Parameters):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000, repr=False)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    def generations(self, max_tokens: int) -> list[GenerationRequest]:
        """What the host is asked: one request.

        Raises:
            UnsupportedParameter: alternatives are asked for without log-probabilities.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise UnsupportedParameter("top_logprobs needs logprobs: true.", param="top_logprobs")
        return [
            GenerationRequest(
                turns=tuple(message.turn() for message in self.messages),
                max_tokens=max_tokens,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                **self._common(),
            )
        ]

    def wanted_tokens(self, default: int) -> int:
        """Most new tokens per choice."""
        for wanted in (self.max_completion_tokens, self.max_tokens):
            if wanted is not None:
                return wanted
        return default


def tokens_to_hold(request: GenerationRequest) -> int:
    """Tokens that a request may compute at most, over all choices, before anybody has counted its prompt.

    A scored prompt counts: its tokens, or one per byte of its text and one that opens it.
    """
    scored = 0
    if request.scores_prompt:
        ids, text = request.prompt_token_ids, request.prompt or ""
        scored = len(ids) if ids is not None else len(text.encode("utf-8", "surrogatepass")) + 1
    return max(1, request.max_tokens * request.n + scored)  # an echo alone computes none and is admitted, too


def _biases(biases: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
    found = []
    for token, bias in biases.items():
        if not token.isascii() or not token.isdigit() or len(token) > 9 or not -100.0 <= bias <= 100.0:
            raise UnsupportedParameter(
                "logit_bias maps token ids to numbers between -100 and 100.", param="logit_bias"
            )
        found.append((int(token), float(bias)))
    return tuple(sorted(found))


def offered(body: dict[str, Any]) -> dict[str, Any]:
    """The body without parameters that ask for nothing.

    Raises:
        UnsupportedParameter: one asks for what is not offered.
    """
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if name in _DROPPED:
            continue
        if name in _NOT_OFFERED:
            harmless, sentence = _NOT_OFFERED[name]
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in harmless):
                raise UnsupportedParameter(sentence, param=name)
            continue
        kept[name] = value
    return kept
