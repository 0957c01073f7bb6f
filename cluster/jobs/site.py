# SPDX-License-Identifier: Apache-2.0
"""The packages that a confined child may import: two of ours, by links, and nothing else of this product."""

from __future__ import annotations

from pathlib import Path

import model_core
import tenants


def link_packages(site: Path) -> list[Path]:
    """Makes a folder that holds links to the two packages which children import.

    Args:
        site: becomes the child's ``PYTHONPATH``.

    Returns:
        Where the packages really lie; the child must be allowed to read them.
    """
    packages = [Path(str(package.__file__)).resolve().parent for package in (model_core, tenants)]
    site.mkdir(exist_ok=True, mode=0o755)
    for package in packages:
        link = site / package.name
        if not link.is_symlink() or link.resolve() != package:
            link.unlink(missing_ok=True)
            link.symlink_to(package, target_is_directory=True)
    return packages
