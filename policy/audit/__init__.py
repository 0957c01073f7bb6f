# SPDX-License-Identifier: Apache-2.0
"""Proof that the stored rows are those that were written: seals, trees, checkpoints, and their verifier."""
