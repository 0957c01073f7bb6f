# SPDX-License-Identifier: Apache-2.0
"""The main job of the marketplace as a story over its real doors."""
