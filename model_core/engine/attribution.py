# SPDX-License-Identifier: Apache-2.0
"""From routing weights to integer parts per million, summing to exactly one token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model_core.engine.requests import WHOLE_PPM


def to_ppm(shares_BE: npt.NDArray[np.float64], names: Sequence[str]) -> list[dict[str, int]]:
    """Rounds shares to integers by largest remainder.

    Ties of remainders go to the earlier column. Experts without a share are left out.

    Args:
        shares_BE: non-negative shares per token and expert; any positive row sum.
        names: of the columns.

    Returns:
        Per row, name to parts per million, summing to exactly 1,000,000.
    """
    scaled = shares_BE / shares_BE.sum(axis=1, keepdims=True) * WHOLE_PPM
    whole = np.floor(scaled).astype(np.int64)
    missing = WHOLE_PPM - whole.sum(axis=1)
    order = np.argsort(whole - scaled, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None, :], axis=1)
    whole += ranks < missing[:, None]
    return [{name: count for name, count in zip(names, row, strict=True) if count} for row in whole.tolist()]
