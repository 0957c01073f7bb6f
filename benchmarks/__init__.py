# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: what the product costs and gains against its peers, as rows in ``build/bench-NAME.json``."""
