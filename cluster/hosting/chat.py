# SPDX-License-Identifier: Apache-2.0
"""From a conversation to token ids, by the template that a base's tokenizer brings.

``chat_template`` in ``tokenizer_config.json`` is a Jinja template as Hugging Face writes it. It is rendered
in a sandbox: it comes with a model, not with the product. Markers that the template writes become the special
tokens they name; a marker that somebody spells out in a message stays plain text, so no message can pass
itself off as another role. A base without a template gets one paragraph per message (``render_turns``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.hosting.errors import PromptRefused
from cluster.hosting.messages import ChatTurn, render_turns
from model_core.text.tokenizer import TOKENIZER_CONFIG_FILE, TextTokenizer

_MOST_CHARACTERS = 1 << 20
# Private-use characters stand for markers in messages while the template runs.
_OPEN, _CLOSE = "\ue000", "\ue001"
_STANDIN = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class ChatFormat:
    """How conversations become prompts of one base.

    Args:
        tokenizer: the base's.
        template: Jinja source; None renders one paragraph per message.
        tokens: values of ``bos_token``, ``eos_token`` and the like.

    Raises:
        PromptRefused: the template is no template.
    """

    def __init__(
        self, tokenizer: TextTokenizer, template: str | None = None, tokens: Mapping[str, str] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens = dict(tokens or {})
        self._template = None
        if template is not None:
            environment = ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
            environment.globals["raise_exception"] = _refuse
            try:
                self._template = environment.from_string(template)
            except TemplateError as error:
                raise PromptRefused(
                    "The chat template of this base cannot be read; import it anew."
                ) from error

    @classmethod
    def load(cls, folder: Path, tokenizer: TextTokenizer) -> ChatFormat:
        """Reads the template of a base's folder, if it has one."""
        try:
            fields = json.loads((folder / TOKENIZER_CONFIG_FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return cls(tokenizer)
        if not isinstance(fields, dict):
            return cls(tokenizer)
        tokens = {name: _text(value) for name, value in fields.items() if name.endswith("_token")}
        try:
            return cls(tokenizer, _default(fields.get("chat_template")), tokens)
        except PromptRefused:
            return cls(tokenizer)  # plain text is understood by every model; nothing is lost but the format

    def ids(self, turns: Sequence[ChatTurn]) -> tuple[int, ...]:
        """Token ids of a conversation that the model is to continue.

        Raises:
            PromptRefused: the template refuses the conversation (roles in an order that it does not know).
        """
        if self._template is None:
            return (self._tokenizer.begin_id, *self._tokenizer.encode(render_turns(tuple(turns))))
        hidden: list[str] = []
        messages = [
            {
                "role": "system" if turn.role == "developer" else turn.role,
                "content": self._hide(turn.content, hidden),
            }
            for turn in turns
        ]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise PromptRefused(
                "The chat template of this base refuses the conversation; check the roles and their order."
            ) from error
        if len(text) > _MOST_CHARACTERS:
            raise PromptRefused("The conversation is too long for the chat template of this base.")
        return tuple(self._encode(text, hidden))

    def _hide(self, content: str, hidden: list[str]) -> str:
        """A message's text with stand-ins for every marker in it."""
        pattern = "|".join(re.escape(one) for one in (*self._tokenizer.markers, _OPEN, _CLOSE))

        def stand_in(found: re.Match[str]) -> str:
            hidden.append(found.group())
            return f"{_OPEN}{len(hidden) - 1}{_CLOSE}"

        return re.sub(pattern, stand_in, content)

    def _encode(self, text: str, hidden: Sequence[str]) -> list[int]:
        ids: list[int] = []
        place = 0
        for found in _STANDIN.finditer(text):
            ids += self._tokenizer.encode_marked(text[place : found.start()])
            number = int(found.group(1))
            ids += self._tokenizer.encode(hidden[number] if number < len(hidden) else "")
            place = found.end()
        return ids + self._tokenizer.encode_marked(text[place:])


def _default(template: Any) -> str | None:
    """The default one of several named templates, or the only one."""
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(value: Any) -> str:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(str(reason))
