# SPDX-License-Identifier: Apache-2.0
"""Experts in slots of one stack per layer on a device: what grouped products multiply.

The stack is the only copy on the device: base and experts are read from the bank once, layer by layer, the
public network goes into slot 0 and the base's own layers look into it. A slot that is empty, poisoned or was
given back holds nothing but NaN. Beside the matrices stand the router's rows by slot, so that whoever names
slots needs nothing else of an expert; a change of the bank writes into the same memory, and only a stack that
had to grow moves (``generation`` tells).

Every kind of expert is written out as a plain network of the base's dtype (a narrow one filled up with zeros,
which add nothing): one product for all, at the price of what low-rank and int8 experts save elsewhere. This
module does not know batches.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.engine.grouped import GroupedFfn, one_by_one
from model_core.engine.weights import BankWeights
from model_core.network.bank import ExpertBank
from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.network.ffn import DenseWeights, RowFunction
from model_core.network.mixture import LayerExperts
from model_core.network.router import RouterRows

# Torch's grouped product takes these dtypes, and rows that begin at such multiples; else experts take turns.
_GROUPED = (torch.bfloat16, torch.float32)
_GROUPED_BYTES = 16


@dataclass(slots=True)
class _Held:
    """An expert's slot, and what was copied into it: a digest may come back as other tensors."""

    source: weakref.ref[Expert]
    slot: int
    poisoned: bool = False


class SlotWeights(BankWeights):
    """Base and experts on a device (see ``BankWeights``).

    Args:
        bank: whose; it stays where it is, and may be mapped from files.
        device: where to compute.
        capacity: experts for which there is room at first, the public one counted.

    Attributes:
        generation: grows when the stacks have moved.
        tables: the router's rows by slot, one table per layer.
        slots_E: slot of each column of the bank.
    """

    @torch.inference_mode()
    def __init__(self, bank: ExpertBank, device: torch.device, *, capacity: int = 8) -> None:
        super().__init__(bank)
        self._device, self._lock = device, threading.Lock()
        self.generation = 0
        self.capacity = 0
        self.decoder = _twin(bank.decoder, device)
        self._stacks: list[tuple[Tensor, Tensor]] = []
        self.tables: list[RouterRows] = []
        self._free: list[int] = []
        self._held: dict[str, _Held] = {}
        self._prepared: dict[str, _Held] = {}
        self._grow(max(capacity, 1 + len(bank.names())))
        self._free.remove(0)
        for index, (gate_up_SFD, down_SDF) in enumerate(self._stacks):
            network = bank.decoder.layer(index).ffn
            _write(gate_up_SFD[0], down_SDF[0], network.dense(network))
        self._panels: list[LayerExperts] = []
        self.slots_E = torch.zeros(1, dtype=torch.long, device=device)
        self.refresh()

    @property
    def grouped(self) -> bool:
        """Whether one call multiplies all experts of a layer."""
        shape, dtype = self._bank.shape, self._bank.dtype
        widths = (shape.d_model * dtype.itemsize, shape.d_ffn * dtype.itemsize)
        return dtype in _GROUPED and not any(width % _GROUPED_BYTES for width in widths)

    @property
    def n_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def panels(self) -> list[LayerExperts]:
        """What the layers route to, in the order of the bank's columns."""
        return self._panels

    def slots_of(self, columns: Sequence[int]) -> list[int]:
        """Slots of columns of the bank."""
        return [self._slots[column] for column in columns]

    def prepare(self, digest: str, expert: Expert) -> None:
        """Copies an expert into a free slot; without one, ``refresh`` does when it makes room."""
        with self._lock:
            if not self._free:
                return
            held = _Held(weakref.ref(expert), self._free.pop(0))
            self._load(held.slot, expert)
            old = self._prepared.pop(digest, None)
            self._prepared[digest] = held
            if old is not None:
                self._give_back(old.slot)

    @torch.inference_mode()
    def refresh(self) -> None:
        """Takes over what the bank holds: copies what is new, fills with NaN what has to go."""
        names, poisoned = self._bank.names()[1:], set(self._bank.poisoned)
        with self._lock:
            before, self._held = self._held, {}
            for name in names:
                self._held[name] = self._find(name, before)
            for held in before.values():
                self._give_back(held.slot)
            for name in [name for name, made in self._prepared.items() if made.source() is None]:
                self._give_back(self._prepared.pop(name).slot)
            for name in poisoned:
                if not self._held[name].poisoned:
                    self._clear(self._held[name].slot)
                    self._held[name].poisoned = True
            self._slots = [0, *(self._held[name].slot for name in names)]
        self.slots_E = torch.tensor(self._slots, device=self._device)
        panels = self._bank.panels()
        for table, panel in zip(self.tables, panels, strict=True):
            for part, new in zip(_parts(table), _parts(panel.rows), strict=True):
                part[self.slots_E] = new.to(self._device)
        self._panels = [
            replace(panel, rows=table.take(self.slots_E), ffns=tuple(self._functions(index)))
            for index, (panel, table) in enumerate(zip(panels, self.tables, strict=True))
        ]

    def ffns(self, index: int) -> GroupedFfn:
        """The networks of all slots of a layer."""
        gate_up_SFD, down_SDF = self._stacks[index]
        if not self.grouped:
            return one_by_one([_network(gate_up_SFD[s], down_SDF[s]) for s in range(self.capacity)])

        def compute(x_PD: Tensor, ends_S: Tensor) -> Tensor:
            inner_PF = F.grouped_mm(x_PD, gate_up_SFD.transpose(1, 2), offs=ends_S)
            gate_PF, up_PF = inner_PF.chunk(2, dim=-1)
            return F.grouped_mm(F.silu(gate_PF) * up_PF, down_SDF.transpose(1, 2), offs=ends_S)

        return compute

    def size_bytes(self) -> int:
        """What the stacks take."""
        return sum(part.nbytes for stack in self._stacks for part in stack)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _functions(self, index: int) -> list[RowFunction]:
        gate_up_SFD, down_SDF = self._stacks[index]
        return [_network(gate_up_SFD[slot], down_SDF[slot]) for slot in self._slots]

    def _find(self, name: str, before: dict[str, _Held]) -> _Held:
        """The expert's slot; copies it into a new one where none holds these very tensors."""
        source = self._bank.held(name)
        for known in (before, self._prepared):
            held = known.get(name)
            if held is not None and held.source() is source:
                return known.pop(name)
        if not self._free:
            self._grow(2 * self.capacity)
        held = _Held(weakref.ref(source), self._free.pop(0))
        self._load(held.slot, source)
        return held

    @torch.inference_mode()
    def _load(self, slot: int, expert: Expert) -> None:
        for index, (gate_up_SFD, down_SDF) in enumerate(self._stacks):
            public = self._bank.decoder.layer(index).ffn
            _write(gate_up_SFD[slot], down_SDF[slot], expert.layer(index).dense_ffn(public))

    def _give_back(self, slot: int) -> None:
        self._clear(slot)
        self._free.append(slot)

    @torch.inference_mode()
    def _clear(self, slot: int) -> None:
        for gate_up_SFD, down_SDF in self._stacks:
            gate_up_SFD[slot].fill_(float("nan"))
            down_SDF[slot].fill_(float("nan"))
        for table in self.tables:
            for part in _parts(table):
                part[slot] = float("nan")

    @torch.inference_mode()
    def _grow(self, capacity: int) -> None:
        """Makes room, one layer at a time, so that never more than one layer is there twice."""
        shape, was = self._bank.shape, self.capacity
        for index in range(shape.n_layers):
            sizes = ((capacity, 2 * shape.d_ffn, shape.d_model), (capacity, shape.d_model, shape.d_ffn))
            fresh = [_nan(size, self._bank.dtype, self._device) for size in sizes]
            table = _empty_table(capacity, shape.d_model, self._device)
            if was:
                for new, old in zip(fresh, self._stacks[index], strict=True):
                    new[:was] = old
                for new, old in zip(_parts(table), _parts(self.tables[index]), strict=True):
                    new[:was] = old
                self._stacks[index], self.tables[index] = (fresh[0], fresh[1]), table
            else:
                self._stacks.append((fresh[0], fresh[1]))
                self.tables.append(table)
            _look_into(self.decoder, index, fresh[0][0], fresh[1][0])
        self._free += range(was, capacity)
        self.capacity = capacity
        self.generation += 1


def _twin(decoder: Decoder, device: torch.device) -> Decoder:
    """The base on a device, without public networks of its own: they are in slot 0."""
    with torch.device("meta"):
        twin = Decoder(decoder.shape)
    state = {
        name: tensor if ".ffn." in name else tensor.to(device)
        for name, tensor in decoder.state_dict().items()
    }
    twin.load_state_dict(state, assign=True)
    twin.rope_cos, twin.rope_sin = decoder.rope_cos.to(device), decoder.rope_sin.to(device)
    return twin.requires_grad_(False).eval()


def _look_into(decoder: Decoder, index: int, gate_up_FD: Tensor, down_DF: Tensor) -> None:
    network = decoder.layer(index).ffn
    gate_FD, up_FD = gate_up_FD.chunk(2)
    for linear, part in ((network.gate, gate_FD), (network.up, up_FD), (network.down, down_DF)):
        linear.weight = nn.Parameter(part, requires_grad=False)


def _write(gate_up_FD: Tensor, down_DF: Tensor, dense: DenseWeights) -> None:
    """Writes a network into a slot; what a narrow one leaves is zero."""
    width = dense.gate_FD.shape[0]
    for part_FD, source_FD in zip(gate_up_FD.chunk(2), (dense.gate_FD, dense.up_FD), strict=True):
        part_FD[:width] = source_FD.to(part_FD.device)
        part_FD[width:] = 0
    down_DF[:, :width] = dense.down_DF.to(down_DF.device)
    down_DF[:, width:] = 0


def _network(gate_up_FD: Tensor, down_DF: Tensor) -> RowFunction:
    def compute(x_RD: Tensor) -> Tensor:
        gate_RF, up_RF = F.linear(x_RD, gate_up_FD).chunk(2, dim=-1)
        return F.linear(F.silu(gate_RF) * up_RF, down_DF)

    return compute


def _nan(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(size, float("nan"), dtype=dtype, device=device)


def _empty_table(capacity: int, d_model: int, device: torch.device) -> RouterRows:
    return RouterRows(
        rows_ED=_nan((capacity, d_model), torch.float32, device),
        biases_E=_nan((capacity,), torch.float32, device),
        gate_rows_ED=_nan((capacity, d_model), torch.float64, device),
        gate_biases_E=_nan((capacity,), torch.float64, device),
    )


def _parts(rows: RouterRows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return rows.rows_ED, rows.biases_E, rows.gate_rows_ED, rows.gate_biases_E
