# SPDX-License-Identifier: Apache-2.0
"""Consent as a record with a life: notice, events, receipts, and a vault for what names people."""
