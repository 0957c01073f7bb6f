# SPDX-License-Identifier: Apache-2.0
"""Who and where: accounts, keys and jobs; the workshop in which one expert is trained."""
