# SPDX-License-Identifier: Apache-2.0
"""Erasure as a workflow of its own: holds, requests, every copy and what became of it, who was told."""
