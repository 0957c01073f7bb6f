# SPDX-License-Identifier: Apache-2.0
"""The workshop: where one tenant's expert is trained, checked and packed, out of everybody's reach."""
