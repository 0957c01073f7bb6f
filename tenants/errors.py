# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the tenants floor.

Tree::

    ProductError
    └── TenantsError
"""

from __future__ import annotations

from model_core.errors import ProductError


class TenantsError(ProductError):
    """Family of the tenants floor."""

    code = "tenants"
