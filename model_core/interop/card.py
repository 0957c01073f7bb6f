# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported composition: who is in it, on which terms, and what it is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_core.interop.config import Layout
from model_core.interop.measuring import Difference


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberTerms:
    """On which terms one member's weights leave.

    Attributes:
        license: SPDX expression.
        obligations: what it asks of whoever takes the copy, a sentence each.
    """

    license: str
    obligations: tuple[str, ...] = ()


def model_card(
    *,
    title: str,
    members: Sequence[Mapping[str, object]],
    lost: Sequence[tuple[str, str]],
    difference: Difference | None,
    notes: Sequence[str],
    layout: Layout,
) -> str:
    """The text of ``README.md``.

    Args:
        title: heading.
        members: digest, kind, name, tenant, license and obligations of each, the base first.
        lost: what the folder does not hold: (digest or ``""``, sentence).
        difference: what that comes to.
        notes: further sentences.
        layout: of the folder.
    """
    names = {member["digest"]: member["name"] for member in members}
    lines = ["---", "library_name: transformers", "---", "", f"# {_plain(title)}", ""]
    kind, taken = layout.architecture.name, f"{layout.top_k} of {layout.n_experts}"
    lines += [
        f"{layout.n_experts - 1} experts beside a public base, {taken} per token, as `{kind}`:",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained("this folder", dtype="float32")',
        'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        "```",
        "",
        "## Members",
        "",
        "| place | name | owner | license | digest |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {place} | {_plain(member['name'])} | {_plain(member['tenant']) or '(public base)'} "
        f"| {_plain(member['license'])} | `{member['digest']}` |"
        for place, member in enumerate(members)
    ]
    duties = [
        f"- {_plain(member['name'])}: {_plain(duty)}"
        for member in members
        for duty in _listed(member["obligations"])
    ]
    lines += ["", "## Obligations", "", *(duties or ["None were stated."]), ""]
    lines += ["## What this folder is not", ""]
    lines.append(
        "No withdrawal can recall this copy, and nothing here asks whether a use is still permitted."
    )
    for digest, sentence in lost:
        lines.append(f"- {_plain(names.get(digest, 'All experts'))}: {sentence} Left out or rounded here.")
    if difference is not None:
        lines += ["", *_measured(difference)]
    lines += ["", *(f"{_plain(note)}\n" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def _measured(difference: Difference) -> list[str]:
    text = f"{difference.documents} public documents ({difference.tokens} tokens)"
    return [
        f"Measured on {text}, this folder against the composition as it is served:",
        "",
        "| figure | value |",
        "|---|---|",
        f"| largest difference of a logit | {difference.max_logit:.4g} |",
        f"| mean divergence of the next token, nats | {difference.mean_kl_nats:.4g} |",
        f"| bits per byte, served | {difference.bits_per_byte_served:.4f} |",
        f"| bits per byte, this folder | {difference.bits_per_byte_folder:.4f} |",
    ]


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _plain(value: object) -> str:
    """Text of others in one table cell: no line breaks, no markup that could end the cell."""
    text = " ".join(str(value).split())
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
