# SPDX-License-Identifier: Apache-2.0
"""May they? Licenses, consent, rules, decisions, epochs, audit, metering and settlement."""
