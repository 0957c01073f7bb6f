# SPDX-License-Identifier: Apache-2.0
"""Steps whose arithmetic is spread over several processes of one machine, each with a part of all weights."""
