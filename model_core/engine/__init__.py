# SPDX-License-Identifier: Apache-2.0
"""The serving engine: one loop of prefill and decode for many sequences with different expert sets."""
