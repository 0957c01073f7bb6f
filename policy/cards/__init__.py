# SPDX-License-Identifier: Apache-2.0
"""Terms of data sets as others write them (Croissant, ODRL, DUO), read into drafts for owners."""
