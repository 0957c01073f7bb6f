# SPDX-License-Identifier: Apache-2.0
"""Text: documents, tokenizer, training rows."""
