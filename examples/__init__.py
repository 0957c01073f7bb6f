# SPDX-License-Identifier: Apache-2.0
"""Programs that use the marketplace as its users do."""
