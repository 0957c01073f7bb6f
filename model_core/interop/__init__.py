# SPDX-License-Identifier: Apache-2.0
"""Models in and out: folders in the Hugging Face layout become bundles, and compositions become folders."""
