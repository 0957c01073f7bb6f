# SPDX-License-Identifier: Apache-2.0
"""The console: pages for people, over the same operations that programs call."""
