# SPDX-License-Identifier: Apache-2.0
"""Renders console pages: one Jinja environment, everything escaped, undefined names are errors."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse

from cluster.gateway.console.charts import curve_chart
from cluster.gateway.sessions import Session
from policy.deciding.reasons import Reason, is_denial
from policy.facts.vocabulary import vocabulary

#: Files that the sign-in page needs as well; nothing else is ever served from the folder.
STATIC_FILES = {
    "console.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

MICRO = 1_000_000


def static_content(name: str) -> bytes:
    """The bytes of one of ``STATIC_FILES``."""
    return resources.files("cluster.gateway.console").joinpath("static", name).read_bytes()


class Renderer:
    """Turns a template and values into a page.

    Args:
        may: answers whether a session's roles open an operation.
    """

    def __init__(self, may: Any) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("cluster.gateway.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(
            time=show_time,
            credits=show_credits,
            number=show_number,
            size=show_size,
            short=show_short,
            tokens=show_tokens,
            against=speaks_against,
            everything=show_everything,
        )
        words = vocabulary()
        self._environment.globals.update(
            may=may,
            integrity={name: _integrity(static_content(name)) for name in STATIC_FILES},
            purposes=sorted(words.purposes.terms.values(), key=lambda term: term.label),
            regions=sorted(words.regions.terms.values(), key=lambda term: term.label),
            curve_chart=curve_chart,
        )

    def page(self, template: str, session: Session | None, status: int = 200, **values: Any) -> HTMLResponse:
        """Renders a page.

        Args:
            template: file below ``templates``.
            session: who looks at it; None on the sign-in page.
            status: HTTP status.
            **values: what the template names.
        """
        text = self._environment.get_template(template).render(session=session, **values)
        return HTMLResponse(text, status_code=status)


def show_time(at_us: int | None) -> Markup:
    """A moment in UTC, readable by people and machines."""
    if at_us is None:
        return Markup("—")
    moment = datetime.fromtimestamp(at_us / MICRO, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    )


def show_credits(micro: int) -> str:
    """An amount in credits, exact to the micro-credit, at least two decimals."""
    sign = "\N{MINUS SIGN}" if micro < 0 else ""
    whole, rest = divmod(abs(micro), MICRO)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole:,}.{decimals}"


def show_number(value: float) -> str:
    """A number with groups of three; fractions keep four significant digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}"


def show_tokens(ppm_tokens: int) -> str:
    """Millionths of a token as tokens."""
    return f"{ppm_tokens / MICRO:,.1f}"


def speaks_against(reason: dict[str, Any]) -> bool:
    """Whether a reason is one of those that deny."""
    return is_denial(Reason.model_validate(reason))


def show_everything(word: str) -> str:
    """The word, or "all" for the star that stands for everything."""
    return "all" if word == "*" else word


def show_size(size_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError


def show_short(digest: str) -> Markup:
    """The beginning of a digest or id; the whole of it is the title."""
    name = digest.removeprefix("sha256:")
    prefix, _, rest = name.rpartition("_")
    shown = f"{prefix}_…{rest[-8:]}" if prefix else name[:12]
    return Markup('<code class="digest" title="{}">{}</code>').format(digest, shown)


def _integrity(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()
