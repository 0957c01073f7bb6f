# SPDX-License-Identifier: Apache-2.0
"""How fast an expert trains: against Hugging Face Trainer, and against what the machine can do."""
