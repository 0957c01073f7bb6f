# SPDX-License-Identifier: Apache-2.0
"""Training jobs: the foreman that follows them and the trusted side of the workshop."""
