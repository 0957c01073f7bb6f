# SPDX-License-Identifier: Apache-2.0
"""Ray, Serve, HTTP, S3, the shell: carries and wires, decides nothing."""
