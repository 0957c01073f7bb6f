# SPDX-License-Identifier: Apache-2.0
"""The engine's arithmetic in C++, compiled on the machine that runs it; without a compiler torch computes."""
