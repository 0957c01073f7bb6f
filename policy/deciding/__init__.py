# SPDX-License-Identifier: Apache-2.0
"""Questions put to a snapshot, and the answers with their reasons. Pure."""
