# SPDX-License-Identifier: Apache-2.0
"""How rows become facts, and how the facts of every epoch are stored and read back."""
