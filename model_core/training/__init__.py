# SPDX-License-Identifier: Apache-2.0
"""Training: bases, experts, gates, calibration."""
