# SPDX-License-Identifier: Apache-2.0
"""What the rooms of this floor take and hand out: frozen documents, never rows of a database."""
