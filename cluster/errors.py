# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the cluster floor.

Tree::

    ProductError
    └── ClusterError
"""

from __future__ import annotations

from model_core.errors import ProductError


class ClusterError(ProductError):
    """Family of the cluster floor."""

    code = "cluster"
