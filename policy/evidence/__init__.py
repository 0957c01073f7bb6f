# SPDX-License-Identifier: Apache-2.0
"""Evidence about one deployment: what it consists of, who permitted it, what was decided, and proofs."""
