# SPDX-License-Identifier: Apache-2.0
"""Training kernels for networks whose greater part is frozen: fewer passes, no gradient nobody asked for."""
