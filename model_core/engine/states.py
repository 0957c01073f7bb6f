# SPDX-License-Identifier: Apache-2.0
"""What sequences have computed so far: keys and values of attention, and prefix sums of domain gates.

Each running sequence has one slot of preallocated tensors, tagged with the key of the expert set that
computed it. Slots are read only after ``claim`` has compared that tag with the sequence's current key. Slots
stay dense (the last one moves into a hole), so that a batch of decoding sequences is a view and not a copy.
Whatever lies beyond a slot's length is zero or the pending write of its own sequence, never another's state.

Positions are written during a step but count only once ``advance`` has been called: a discarded step leaves
every state as it was. The module knows nothing of tokens, routing or sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_core.errors import EngineFull, StateKeyMismatch
from model_core.network.bank import StateKey
from model_core.packing.manifest import ModelShape


class SequenceStates:
    """Slots of states.

    Args:
        shape: sizes of the decoder.
        max_sequences: slots.
        max_context: positions per slot.
        dtype: of keys and values.
    """

    def __init__(
        self, shape: ModelShape, *, max_sequences: int, max_context: int, dtype: torch.dtype
    ) -> None:
        # One tensor per layer: [slots, kv heads, positions, head width].
        size = (max_sequences, shape.n_kv_heads, max_context, shape.head_dim)
        self.keys = [torch.zeros(size, dtype=dtype) for _ in range(shape.n_layers)]
        self.values = [torch.zeros(size, dtype=dtype) for _ in range(shape.n_layers)]
        # Sum of the residual that entered each layer's router over all counted positions.
        self.sums_LND = torch.zeros(shape.n_layers, max_sequences, shape.d_model, dtype=torch.float64)
        self.max_sequences = max_sequences
        self._tags: list[StateKey] = []
        self._lengths: list[int] = []
        self._written: list[int] = []

    @property
    def n_open(self) -> int:
        """Slots in use; they are the slots 0 to ``n_open - 1``."""
        return len(self._tags)

    def open(self, key: StateKey) -> int:
        """Takes the next slot for a sequence.

        Raises:
            EngineFull: all are in use.
        """
        if self.n_open == self.max_sequences:
            raise EngineFull(
                "Every place for a sequence is taken; try again later.", places=self.max_sequences
            )
        self._tags.append(key)
        self._lengths.append(0)
        self._written.append(0)
        return self.n_open - 1

    def claim(self, slot: int, key: StateKey) -> int:
        """Asks to read a slot under a key.

        Returns:
            How many positions it holds.

        Raises:
            StateKeyMismatch: it was computed under another key.
        """
        if self._tags[slot] != key:
            raise StateKeyMismatch(
                "A cached state was computed under another expert set; recompute the sequence.", slot=slot
            )
        return self._lengths[slot]

    def touch(self, slot: int, end: int) -> None:
        """Notes that positions below ``end`` are about to be written."""
        self._written[slot] = max(self._written[slot], end)

    def advance(self, slot: int, length: int) -> None:
        """Makes positions below ``length`` count."""
        self._lengths[slot] = length

    def reset(self, slot: int, key: StateKey) -> None:
        """Erases a slot and tags it anew: nothing that was computed under the old key remains."""
        end = self._written[slot]
        for layer_keys, layer_values in zip(self.keys, self.values, strict=True):
            layer_keys[slot, :, :end] = 0
            layer_values[slot, :, :end] = 0
        self.sums_LND[:, slot] = 0
        self._tags[slot], self._lengths[slot], self._written[slot] = key, 0, 0

    def close(self, slot: int) -> int:
        """Erases a slot and gives it up; the last slot moves into its place.

        Returns:
            The former number of the slot that is now ``slot`` (``slot`` itself if it was the last).
        """
        last = self.n_open - 1
        self.reset(slot, self._tags[slot])
        if slot != last:
            end = self._written[last]
            for layer_keys, layer_values in zip(self.keys, self.values, strict=True):
                layer_keys[slot, :, :end] = layer_keys[last, :, :end]
                layer_values[slot, :, :end] = layer_values[last, :, :end]
            self.sums_LND[:, slot] = self.sums_LND[:, last]
            self._tags[slot] = self._tags[last]
            self._lengths[slot], self._written[slot] = self._lengths[last], end
            self.reset(last, self._tags[last])
        self._tags.pop()
        self._lengths.pop()
        self._written.pop()
        return last

    def size_bytes(self) -> int:
        """Memory that the slots take."""
        layers: list[Tensor] = [*self.keys, *self.values, self.sums_LND]
        return sum(tensor.numel() * tensor.element_size() for tensor in layers)
