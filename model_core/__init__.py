# SPDX-License-Identifier: Apache-2.0
"""Tensors: model family, experts, router, training, engine, evaluation, manifests. Imports nothing itself."""
