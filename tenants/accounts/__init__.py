# SPDX-License-Identifier: Apache-2.0
"""The account rooms: who is there, with which keys, datasets and jobs; home of the SQL engine."""
