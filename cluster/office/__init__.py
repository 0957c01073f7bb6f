# SPDX-License-Identifier: Apache-2.0
"""The office: the one process that opens the database, and the messages it exchanges."""
