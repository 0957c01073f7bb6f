# SPDX-License-Identifier: Apache-2.0
"""The model family: decoder, router, mixture, experts and the bank that keeps them."""
