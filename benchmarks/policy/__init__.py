# SPDX-License-Identifier: Apache-2.0
"""How fast the policy service decides, explains, publishes and replays."""
