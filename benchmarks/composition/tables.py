# SPDX-License-Identifier: Apache-2.0
"""From scores to the rows of the report: gaps, shares closed, harm, and the price on public text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.composition.figures import BASE, OWN, Resampled, gather, interval
from benchmarks.composition.scoring import Scores
from benchmarks.composition.texts import PUBLIC, work_of
from benchmarks.composition.variants import GATES, ROWS, TITLES
from benchmarks.report import Row
from model_core.evaluation.intervals import Interval

MIN_CLOSED = 0.4
MAX_PUBLIC_RATIO = 1.02
UNIT = "bits per byte"


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeTable:
    """Everything about one size, over all its seeds.

    Attributes:
        size: its name.
        owners: in the order of the tables.
        variants: ways of composing.
        losses: model and domain to bits per byte.
        gaps: variant and owner to what merging costs; the owner ``""`` stands for the mean over owners.
        closed: variant to the share of the gap under the paper's rows that it does not have.
        harms: variant and owner to bits per byte more than under the paper's rows.
        public: variant to bits on public text over the base's.
    """

    size: str
    owners: tuple[str, ...]
    variants: tuple[str, ...]
    losses: Mapping[tuple[str, str], Interval]
    gaps: Mapping[tuple[str, str], Interval]
    closed: Mapping[str, Interval]
    harms: Mapping[tuple[str, str], Interval]
    public: Mapping[str, Interval]


def size_table(
    size: str, seeds: Sequence[Scores], owners: Sequence[str], variants: Sequence[str]
) -> SizeTable:
    """Figures of one size.

    Args:
        size: its name.
        seeds: scores of each seed.
        owners: private domains.
        variants: ways of composing, the paper's rows among them.
    """
    domains = [
        gather(domain, {model: [scores[model][domain] for scores in seeds] for model in seeds[0]}, work_of)
        for domain in (*owners, PUBLIC)
    ]
    drawn = Resampled(domains)
    all_works = sum(drawn.works[owner] for owner in owners)
    others = [variant for variant in variants if variant != ROWS]
    gaps = {
        (variant, owner): interval(drawn.gap(variant, owner), works=drawn.works[owner])
        for variant in variants
        for owner in owners
    }
    for variant in variants:
        gaps[variant, ""] = interval(drawn.mean_gap(variant, owners), works=all_works)
    return SizeTable(
        size=size,
        owners=tuple(owners),
        variants=tuple(variants),
        losses={
            (model, item.domain): interval(drawn.loss(model, item.domain), works=drawn.works[item.domain])
            for model in (BASE, OWN, *variants)
            for item in domains
        },
        gaps=gaps,
        closed={
            variant: interval(drawn.share_closed(variant, ROWS, owners), works=all_works)
            for variant in others
        },
        harms={
            (variant, owner): interval(drawn.harm(variant, ROWS, owner), works=drawn.works[owner])
            for variant in others
            for owner in owners
        },
        public={
            variant: interval(drawn.ratio(variant, PUBLIC), works=drawn.works[PUBLIC]) for variant in variants
        },
    )


def report_rows(table: SizeTable) -> list[Row]:
    """The rows of one size; bars stand only on the default variant.

    The share closed must hold with its whole interval, harm must be shown with its whole interval to count,
    and the price on public text is held by its figure.
    """
    rows = [_closed(table, variant) for variant in table.closed]
    rows += [_public(table, variant) for variant in table.variants]
    for owner in table.owners:
        rows += [_gap(table, variant, owner) for variant in table.variants]
        harm = table.harms[GATES, owner]
        rows.append(
            Row(
                name=f"{table.size} {owner}: gates less rows {_range(harm)}",
                ours=harm.value,
                peer=0.0,
                unit=UNIT,
                bar="not worse by more than noise",
                holds=harm.low <= 0,
            )
        )
    return rows


def _closed(table: SizeTable, variant: str) -> Row:
    closed = table.closed[variant]
    barred = variant == GATES
    return Row(
        name=f"{table.size}: share of the gap closed, {TITLES[variant]} {_range(closed)}",
        ours=closed.value,
        peer=MIN_CLOSED,
        ratio=closed.value / MIN_CLOSED,
        unit="share",
        bar=f"interval >= {MIN_CLOSED}" if barred else None,
        holds=closed.low >= MIN_CLOSED if barred else None,
    )


def _public(table: SizeTable, variant: str) -> Row:
    ratio, barred = table.public[variant], variant == GATES
    return Row(
        name=f"{table.size} public: {TITLES[variant]} over base {_range(ratio)}",
        ours=table.losses[variant, PUBLIC].value,
        peer=table.losses[BASE, PUBLIC].value,
        ratio=ratio.value,
        unit=UNIT,
        bar=f"<= {MAX_PUBLIC_RATIO}" if barred else None,
        holds=ratio.value <= MAX_PUBLIC_RATIO if barred else None,
    )


def _gap(table: SizeTable, variant: str, owner: str) -> Row:
    gap = table.gaps[variant, owner]
    return Row(
        name=f"{table.size} {owner}: {TITLES[variant]}, gap {gap.value:+.3f} {_range(gap)}",
        ours=table.losses[variant, owner].value,
        peer=table.losses[OWN, owner].value,
        ratio=table.losses[variant, owner].value / table.losses[OWN, owner].value,
        unit=UNIT,
    )


def _range(figure: Interval) -> str:
    return f"[{figure.low:.3f}, {figure.high:.3f}]"
