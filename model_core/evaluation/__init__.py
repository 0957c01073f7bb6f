# SPDX-License-Identifier: Apache-2.0
"""Evaluation: bits per byte, intervals, routing shares."""
