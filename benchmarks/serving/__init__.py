# SPDX-License-Identifier: Apache-2.0
"""How fast compositions are served: against Hugging Face, llama.cpp and what the machine can do."""
