# SPDX-License-Identifier: Apache-2.0
"""Model hosts: one base each, compositions as the register permits, journaled before released."""
