# SPDX-License-Identifier: Apache-2.0
"""What a change would do before anybody approves it: to deployments, logged decisions, quality and money."""
