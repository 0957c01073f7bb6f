# SPDX-License-Identifier: Apache-2.0
"""Turns a host's chunks into the documents that OpenAI clients read, whole or as stream events.

Both kinds of answer carry one field of our own, ``marketplace``: the request id and, per run of tokens,
the epoch, the composition and the routed share of each expert.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any

from cluster.hosting.messages import GenerationAccount, GenerationChunk, TokenLogprob

# The host's further reasons exist for receipts; clients know only OpenAI's own.
_FINISH = {
    "stop": "stop",
    "length": "length",
    "cancelled": "stop",
    "withdrawn": "content_filter",
    "stopped": "content_filter",
}


# Stands for the text in an event; escaped, so that no name of a model is taken for it.
_MARK = "\x00"
_MARKED = b'"\\u0000"'


# Ends of lines to clients that split decoded text, as httpx does; JSON leaves them as they are.
_LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}


def sent(event: dict[str, Any]) -> bytes:
    """A stream event as it is sent: one line, whoever splits it."""
    document = json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
    return b"data: " + _on_one_line(document) + b"\n\n"


def _on_one_line(document: bytes) -> bytes:
    for end, escaped in _LINE_ENDS.items():
        document = document.replace(end, escaped)
    return document


@dataclass(kw_only=True, slots=True)
class Choice:
    """What has arrived of one choice.

    Attributes:
        text: joined on demand.
        logprobs: per token, when asked for.
        finish: OpenAI's word for why it ended.
        offset: characters of token text seen, for ``text_offset``.
    """

    parts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None
    offset: int = 0


class Shape:
    """One answer in the making, of one prompt or of several.

    Args:
        chat: chat completion or plain completion.
        model: the deployment's name.
        request_ids: of the admissions, one per prompt; the first names the answer.
        n: number of choices per prompt; those of the second prompt come after those of the first.
        logprobs: whether log-probabilities were asked for.
    """

    def __init__(self, *, chat: bool, model: str, request_ids: Sequence[str], n: int, logprobs: bool) -> None:
        self._chat = chat
        self._model = model
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{request_ids[0]}"
        self._n = n
        self._logprobs = logprobs
        self._created_s = int(time.time())
        self._choices = [Choice() for _ in range(n * len(request_ids))]
        self._completion_tokens = 0
        self._prompt_tokens = [0] * len(request_ids)
        self._accounts: list[GenerationAccount | None] = [None] * len(request_ids)
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def take(self, chunk: GenerationChunk, prompt: int = 0) -> None:
        """Counts a chunk and keeps its text for the whole answer.

        Args:
            chunk: what came.
            prompt: number of the prompt that it answers.
        """
        if chunk.prompt is not None:
            for choice in self._choices[prompt * self._n : (prompt + 1) * self._n]:
                choice.parts.append(chunk.prompt.text)
                choice.logprobs.extend(chunk.prompt.logprobs or ())
        choice = self._choices[prompt * self._n + chunk.index]
        choice.parts.append(chunk.text)
        choice.logprobs.extend(chunk.logprobs or ())
        self._count(chunk, prompt)
        if chunk.finish_reason is not None:
            choice.finish = _FINISH[chunk.finish_reason]

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        kind = "chat.completion" if self._chat else "text_completion"
        return {
            **self._head(kind),
            "choices": choices,
            "usage": self.usage(),
            "marketplace": self.marketplace(),
        }

    def opening(self) -> list[dict[str, Any]]:
        """Events before the first token: the assistant's role, in chats."""
        if not self._chat:
            return []
        role = {"role": "assistant", "content": ""}
        return [self._event([self._delta(index, role, None, None)]) for index in range(len(self._choices))]

    def events(self, chunk: GenerationChunk, prompt: int = 0) -> list[dict[str, Any]]:
        """The stream events of a chunk; a finish is an event of its own."""
        self._count(chunk, prompt)
        made = []
        if chunk.prompt is not None:
            for index in range(prompt * self._n, (prompt + 1) * self._n):
                found = list(chunk.prompt.logprobs or ())
                made.append(self._event([self._text_delta(index, chunk.prompt.text, found)]))
        index = prompt * self._n + chunk.index
        if chunk.text or chunk.logprobs:
            made.append(self._event([self._text_delta(index, chunk.text, list(chunk.logprobs or ()))]))
        if chunk.finish_reason is not None:
            finish = _FINISH[chunk.finish_reason]
            if self._chat:
                made.append(self._event([self._delta(index, {}, None, finish)]))
            else:
                made.append(self._event([self._plain(index, "", None, finish)]))
        return made

    def sendable(self, chunk: GenerationChunk, prompt: int = 0) -> list[bytes | dict[str, Any]]:
        """The stream events of a chunk as they are sent; one that finishes a choice may still be added to."""
        ready = self.text_event(chunk, prompt)
        if ready is not None:
            return [ready]
        made = self.events(chunk, prompt)
        return [event if event["choices"][0]["finish_reason"] else sent(event) for event in made]

    def text_event(self, chunk: GenerationChunk, prompt: int = 0) -> bytes | None:
        """The stream event of a chunk that brings text and nothing else, as it is sent; None for others.

        All but the text is written once: nearly every event of a stream is of this kind.
        """
        plain = chunk.prompt is None and chunk.finish_reason is None and not chunk.logprobs
        if self._logprobs or not plain or not chunk.text:
            return None
        self._count(chunk, prompt)
        index = prompt * self._n + chunk.index
        if index not in self._frames:
            before, _, after = sent(self._event([self._text_delta(index, _MARK, [])])).rpartition(_MARKED)
            self._frames[index] = before, after
        before, after = self._frames[index]
        return before + _on_one_line(encode_basestring(chunk.text).encode()) + after

    @property
    def complete(self) -> bool:
        """Whether every prompt's account has come."""
        return all(account is not None for account in self._accounts)

    def closing_usage(self) -> dict[str, Any]:
        """The usage event of a stream whose caller asked for it; it has no choices."""
        return {**self._event([]), "usage": self.usage(), "marketplace": self.marketplace()}

    def usage(self) -> dict[str, int]:
        """Tokens: the hosts' own accounts once they came, what arrived before."""
        prompt, completion = sum(self._prompt_tokens), self._completion_tokens
        if self.complete:
            accounts = [account for account in self._accounts if account is not None]
            prompt = sum(account.prompt_tokens for account in accounts)
            completion = sum(account.completion_tokens for account in accounts)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def marketplace(self) -> dict[str, Any] | None:
        """Our own field: of the one prompt, or a list over several."""
        if not self.complete:
            return None
        shown = [_shown(account) for account in self._accounts if account is not None]
        return shown[0] if len(shown) == 1 else {"request_id": shown[0]["request_id"], "prompts": shown}

    def _count(self, chunk: GenerationChunk, prompt: int) -> None:
        self._completion_tokens += len(chunk.token_ids)
        if chunk.prompt_tokens is not None:
            self._prompt_tokens[prompt] = chunk.prompt_tokens
        if chunk.marketplace is not None:
            self._accounts[prompt] = chunk.marketplace

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created_s, "model": self._model}

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._head(kind), "choices": choices}

    def _whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.parts)
        finish = choice.finish or "stop"
        found = choice.logprobs if self._logprobs else None
        if not self._chat:
            return self._plain(index, text, None if found is None else _plain_logprobs(found, 0), finish)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if found is None else _chat_logprobs(found),
            "finish_reason": finish,
        }

    def _text_delta(self, index: int, text: str, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        found = logprobs if self._logprobs else None
        if self._chat:
            shown = None if found is None else _chat_logprobs(found)
            return self._delta(index, {"content": text}, shown, None)
        choice = self._choices[index]
        shown = None if found is None else _plain_logprobs(found, choice.offset)
        choice.offset += sum(len(one.token) for one in found or ())
        return self._plain(index, text, shown, None)

    @staticmethod
    def _delta(
        index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    @staticmethod
    def _plain(index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _plain_logprobs(found: list[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for one in found:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [None if one.logprob is None else _by_text(one) for one in found],
        "text_offset": offsets,
    }


def _by_text(one: TokenLogprob) -> dict[str, float]:
    """Alternatives by text; where several tokens look alike the likeliest stands for them."""
    found: dict[str, float] = {}
    for text, _, logprob in one.top:
        found.setdefault(text, logprob)
    return found


def _shown(account: GenerationAccount) -> dict[str, Any]:
    shown = account.model_dump(mode="json")
    wanted = ["request_id", "exact", "segments"]
    wanted += [name for name in ("continued_as", "scored_tokens", "ended") if shown[name]]
    return {name: shown[name] for name in wanted}


def _chat_logprobs(found: list[TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            _token(one.token, one.logprob or 0.0)
            | {"top_logprobs": [_token(text, logprob) for text, _, logprob in one.top]}
            for one in found
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}
