# SPDX-License-Identifier: Apache-2.0
"""Kills every process of a marketplace again and again, and holds it to what its clients were told."""
