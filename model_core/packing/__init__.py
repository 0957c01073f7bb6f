# SPDX-License-Identifier: Apache-2.0
"""Packing: names, digests, manifests, seals, bundles and stores, without ever loading a tensor library."""
