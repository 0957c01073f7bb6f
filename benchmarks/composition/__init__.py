# SPDX-License-Identifier: Apache-2.0
"""What merging costs each owner, measured: experts trained alone, composed, and scored on held-out text."""
