# SPDX-License-Identifier: Apache-2.0
"""The endpoint as lm-eval's API model sees it: brought up, asked, and compared with our own scores."""
