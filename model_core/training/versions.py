# SPDX-License-Identifier: Apache-2.0
"""Which code made a bundle: the versions that go into its manifest."""

from __future__ import annotations

import importlib.metadata

import torch

DISTRIBUTION = "expert-marketplace"


def code_version() -> str:
    """Version of the installed product, or ``source`` when it runs from a checkout that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def torch_version() -> str:
    """Version of torch, build tag included: sums may differ in the last bits between builds."""
    return str(torch.__version__)
