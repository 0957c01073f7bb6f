# SPDX-License-Identifier: Apache-2.0
"""How many bytes of weights and cache a decode step must read: the bound of a memory roofline."""

from __future__ import annotations

from torch import Tensor

from benchmarks.serving.case import ITEM_BYTES, Cell
from model_core.network.bank import ExpertBank


def step_bytes(bank: ExpertBank, cell: Cell, touched_LE: Tensor) -> float:
    """Bytes that one decode step of a cell reads: trunk, touched experts, head, router rows, keys and values.

    Args:
        bank: weights as they are stored (integers count as such).
        cell: its concurrency, prompts and new tokens.
        touched_LE: how often a step touches each expert of each layer.
    """
    return fixed_bytes(bank) + expert_bytes(bank, touched_LE) + cache_bytes(bank, cell)


def fixed_bytes(bank: ExpertBank) -> float:
    """Attention, norms and head, and the router rows of all experts."""
    decoder = bank.decoder
    parts = [
        tensor.nbytes
        for name, tensor in decoder.named_parameters()
        if not name.startswith("embed") and ".ffn." not in name and "router." not in name
    ]
    if decoder.lm_head is None:
        parts.append(decoder.embed.weight.nbytes)
    rows = len(bank.names()) * bank.shape.n_layers * bank.shape.d_model * 4
    return float(sum(parts) + rows)


def expert_bytes(bank: ExpertBank, touched_LE: Tensor) -> float:
    """Feed-forward weights of the touched experts."""
    total = 0.0
    for index in range(bank.shape.n_layers):
        sizes = [_size(bank.decoder.layer(index).ffn)]
        sizes += [_size(bank.expert(digest).layer(index).ffn) for digest in bank.digests]
        total += sum(size * float(share) for size, share in zip(sizes, touched_LE[index], strict=True))
    return total


def cache_bytes(bank: ExpertBank, cell: Cell) -> float:
    """Keys and values of all sequences in the middle of decoding."""
    shape = bank.shape
    item = ITEM_BYTES[cell.number_format]
    positions = cell.prompt_tokens + cell.new_tokens / 2
    return 2.0 * shape.n_layers * shape.n_kv_heads * shape.head_dim * item * positions * cell.concurrency


def _size(module: object) -> int:
    tensors = module.state_dict().values()  # type: ignore[attr-defined]
    return sum(tensor.nbytes for tensor in tensors)
