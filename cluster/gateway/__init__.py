# SPDX-License-Identifier: Apache-2.0
"""The HTTP door: management API, OpenAI API and console, all behind one key."""
