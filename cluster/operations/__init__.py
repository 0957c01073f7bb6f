# SPDX-License-Identifier: Apache-2.0
"""The table of everything that may be asked of the marketplace, and the work behind each row."""
