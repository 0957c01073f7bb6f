# SPDX-License-Identifier: Apache-2.0
"""Publishes epochs, says so, and keeps what was decided, acknowledged and known under each."""
