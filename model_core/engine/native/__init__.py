# SPDX-License-Identifier: Apache-2.0
"""The engine's arithmetic in C++, compiled on the machine that runs it; torch computes where that cannot be."""
