# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the policy floor.

Tree::

    ProductError
    └── PolicyError
"""

from __future__ import annotations

from model_core.errors import ProductError


class PolicyError(ProductError):
    """Family of the policy floor."""

    code = "policy"
