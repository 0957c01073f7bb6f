# SPDX-License-Identifier: Apache-2.0
"""Usage metered once, priced in integers, held against budgets and settled in books that balance."""
