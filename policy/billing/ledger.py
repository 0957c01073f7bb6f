# SPDX-License-Identifier: Apache-2.0
"""Prices usage and balances it, in integers, so that the same usage always costs the same. Pure.

The unit of usage is a millionth of a token (ppm-token), of money a micro-credit. One token of an expert at a
price of p micro-credits per 1000 tokens costs p/1000 micro-credits; the product of ppm-tokens and price is
therefore kept in units of 1/``UNIT`` micro-credit and only whole micro-credits are charged. What is left over
is carried to the next chunk of the same request, so that cutting a request into chunks changes nothing. Whole
amounts are split by largest remainder: nothing is lost and nothing is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from policy.errors import InvalidUsage, Unbalanced

PPM: Final = 1_000_000
UNIT: Final = 1_000 * PPM
"""Fractions of a micro-credit in which costs are counted before rounding."""

FEES_PPM: Final[Mapping[str, int]] = MappingProxyType({"1": 100_000})
"""Share of the platform in every charge, by version of the price rules. A released version never changes."""
PRICING_VERSION: Final = "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """An expert's part of a chunk and the price that applies to it."""

    bundle: str
    owner: str
    ppm_tokens: int
    price_micro_per_1k_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Charge:
    """What a share costs the consumer, and how much of that the platform keeps."""

    share: Share
    amount_micro: int
    fee_micro: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One amount on one account; positive is owed to the account's tenant."""

    account_id: str
    tenant: str
    kind: str
    amount_micro: int


def allocate(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Splits a whole amount in proportion to weights, by largest remainder, earlier places first.

    Args:
        total: non-negative amount; must be 0 when all weights are.
        weights: non-negative.

    Returns:
        Non-negative parts that sum to ``total``.

    Raises:
        InvalidUsage: something negative, or an amount without anybody to carry it.
    """
    whole = sum(weights)
    if total < 0 or any(weight < 0 for weight in weights) or (total and not whole):
        raise InvalidUsage("An amount can not be split over these weights.", total=total)
    if not whole:
        return (0,) * len(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for place in by_remainder[: total - sum(parts)]:
        parts[place] += 1
    return tuple(parts)


def price(
    shares: Sequence[Share], remainder: int, pricing_version: str = PRICING_VERSION
) -> tuple[tuple[Charge, ...], int]:
    """Prices one chunk of a request.

    Args:
        shares: the experts' parts, in any order; charges come back in order of bundle.
        remainder: what earlier chunks of the request left over, in 1/``UNIT`` micro-credit.
        pricing_version: which fee applies.

    Returns:
        One charge per share, and the new remainder. Over a whole request the charges sum to the exact
        cost rounded down.
    """
    ordered = sorted(shares, key=lambda share: share.bundle)
    costs = [share.ppm_tokens * share.price_micro_per_1k_tokens for share in ordered]
    total, left = divmod(remainder + sum(costs), UNIT)
    # A chunk without cost of its own adds nothing, so the remainder alone never reaches a whole unit.
    amounts = allocate(total, costs)
    fees = allocate(total * FEES_PPM[pricing_version] // PPM, amounts)
    charges = [
        Charge(share=share, amount_micro=amount, fee_micro=fee)
        for share, amount, fee in zip(ordered, amounts, fees, strict=True)
    ]
    return tuple(charges), left


def hold_micro(tokens: int, price_ceiling_micro_per_1k: int) -> int:
    """The most that a number of tokens can cost below a price ceiling, rounded up."""
    return -(-tokens * price_ceiling_micro_per_1k // 1_000)


def entries(charges: Sequence[tuple[str, Charge]], platform: str) -> tuple[Entry, ...]:
    """Turns charges, each with the consumer's slug, into balanced entries: one per account.

    Returns:
        Entries by account id, none of them zero; empty when nothing costs anything.
    """
    sums: dict[tuple[str, str], int] = {}

    def add(kind: str, tenant: str, amount: int) -> None:
        sums[kind, tenant] = sums.get((kind, tenant), 0) + amount

    for consumer, charge in charges:
        add("consumer", consumer, -charge.amount_micro)
        add("owner", charge.share.owner, charge.amount_micro - charge.fee_micro)
        add("fees", platform, charge.fee_micro)
    found = tuple(
        Entry(account_id=f"{kind}:{tenant}", tenant=tenant, kind=kind, amount_micro=amount)
        for (kind, tenant), amount in sorted(sums.items())
        if amount
    )
    check_balanced(found)
    return found


def check_balanced(found: Sequence[Entry]) -> None:
    """Lets entries pass that sum to zero.

    Raises:
        Unbalanced: they do not.
    """
    total = sum(entry.amount_micro for entry in found)
    if total:
        raise Unbalanced("The entries do not sum to zero; nothing was booked.", total_micro=total)
