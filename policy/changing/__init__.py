# SPDX-License-Identifier: Apache-2.0
"""Every act upon the register: edits, drafts, reviews, schedules, stops and the way back."""
