# SPDX-License-Identifier: Apache-2.0
"""What the register states, as frozen documents, and snapshots of it. Pure; knows no question."""
