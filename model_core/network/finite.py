# SPDX-License-Identifier: Apache-2.0
"""Whether weights hold NaN or infinity: every tensor of every bundle is asked, so it should be quick."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order."""
    return sorted(name for name, tensor in tensors.items() if not is_finite(tensor))


@torch.no_grad()
def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum with one of these in it is one of these, in whatever order it is taken, and torch adds many times as
    fast as it looks at each number. A sum that is one of these says nothing: finite numbers may have left the
    format, so then each is looked at.
    """
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
