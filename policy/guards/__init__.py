# SPDX-License-Identifier: Apache-2.0
"""What stands before a write: who may, which version was read, and that no other one says the same."""
