# SPDX-License-Identifier: Apache-2.0
"""The runner that computes a step in one call of compiled code (``source/step.hpp``).

Python lays out a batch as a few flat arrays and owns the memory of states; everything per layer, row and
expert happens behind the call, which lets other Python threads run. No bit of a row depends on what else is
computed, so every engine on this runner is deterministic.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from model_core.engine.native.derived import DerivedFolder
from model_core.engine.native.footprint import release_file_pages
from model_core.engine.native.library import Library
from model_core.engine.native.tables import BatchView, ModelView, Record, StatesView, model_view, state_kind
from model_core.engine.native.trees import in_large_pages
from model_core.engine.native.weights import (
    PackedBase,
    PackedExpert,
    matrices,
    pack_base,
    pack_expert,
    poison,
)
from model_core.engine.runner import Likeliest, Piece, StepResult
from model_core.network.bank import ExpertBank
from model_core.network.expert import Expert

PAGE_SIZE = 16


class NativeRunner:
    """Computes steps over one bank with compiled kernels, on CPU.

    Args:
        bank: whose weights; what it holds is packed here and not read again until ``refresh``.
        library: the compiled code.
        n_pages: pages of keys and values.
        n_tails: places for prefix sums.
        threads: how many compute; None takes as many as torch.
        folder: where packed weights are kept for all processes of the machine; None packs into memory of
            this process alone. ``claims`` clears it.

    Attributes:
        touched_E: rows that the last step multiplied with each column's matrices, all layers together.
            A low-rank expert's way through the public matrices counts as its own.
    """

    page_size = PAGE_SIZE
    row_exact = True

    def __init__(
        self,
        bank: ExpertBank,
        library: Library,
        *,
        n_pages: int,
        n_tails: int,
        threads: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.n_pages, self.n_tails = n_pages, n_tails
        self._bank, self._calls = bank, _declared(library)
        self._step = self._calls.experts_step_open(threads or torch.get_num_threads())
        shape = bank.shape
        self._rope = (bank.decoder.rope_cos.contiguous(), bank.decoder.rope_sin.contiguous())
        self._library = library
        self._folder = None if folder is None else DerivedFolder(folder, library)
        self._base = self._take_base()
        self._experts: dict[str, _Held] = {}
        self._prepared: dict[str, _Held] = {}
        self._names: tuple[str, ...] = ()
        self._gated = False
        dtype, kind = state_kind(bank.dtype)
        padded = -(-shape.head_dim // 16) * 16
        page_width = shape.n_layers * shape.n_kv_heads * PAGE_SIZE * (shape.head_dim + padded)
        self._keys_values_PX = _zeros(n_pages, page_width, dtype=dtype)
        # Torch would wake threads to overwrite a page, and those stand in the way of the next step.
        self._page_bytes_PY = self._keys_values_PX.view(torch.uint8).numpy()
        # Takes memory only once it is written, which no step without a gated expert does.
        sums = (shape.n_layers, shape.d_model)
        self._page_sums_PLD = _zeros(n_pages, *sums, dtype=torch.float64)
        self._tails_NLD = _zeros(n_tails, *sums, dtype=torch.float64)
        self._new_tails_BLD = torch.empty(0, *sums, dtype=torch.float64)
        self._states = StatesView(
            self._keys_values_PX.data_ptr(),
            self._page_sums_PLD.data_ptr(),
            self._tails_NLD.data_ptr(),
            n_pages,
            n_tails,
            kind,
        )
        self.touched_E = torch.zeros(0, dtype=torch.int64)
        self.refresh()

    def close(self) -> None:
        """Ends the threads; the runner cannot be used any more."""
        if self._step:
            self._calls.experts_step_close(self._step)
            self._step = None

    def __del__(self) -> None:
        if getattr(self, "_step", None):
            self.close()

    def run(self, pieces: Sequence[Piece]) -> StepResult:
        """See ``Runner.run``."""
        n, n_columns = len(pieces), len(self._names)
        if self._new_tails_BLD.shape[0] < n:
            self._new_tails_BLD = torch.empty(n, *self._tails_NLD.shape[1:], dtype=torch.float64)
        logits_BV = torch.empty(n, self._bank.shape.vocab_size)
        shares_BE = torch.empty(n, n_columns, dtype=torch.float64)
        touched_E = torch.empty(n_columns, dtype=torch.int64)
        lists = (
            [token for piece in pieces for token in piece.ids],
            [piece.start for piece in pieces],
            [len(piece.ids) for piece in pieces],
            [piece.tail for piece in pieces],
            [piece.top_k for piece in pieces],
            _offsets([len(piece.pages) for piece in pieces]),
            [page for piece in pieces for page in piece.pages],
            _offsets([len(piece.columns) for piece in pieces]),
            [column for piece in pieces for column in piece.columns],
        )
        # One array for all: memory is far from every cache after a step.
        numbers = array("i", [number for part in lists for number in part])
        begins = [4 * begin for begin in _offsets([len(part) for part in lists])[:-1]]
        tokens_B, ppm_BE = array("i", bytes(4 * n)), array("i", bytes(4 * n * n_columns))
        log_totals_B = array("d", bytes(8 * n))
        begin = numbers.buffer_info()[0]
        n_rows = len(lists[0])
        results = (logits_BV, shares_BE, self._new_tails_BLD, touched_E)
        addresses = [begin + offset for offset in begins] + [part.data_ptr() for part in results]
        addresses += [part.buffer_info()[0] for part in (tokens_B, log_totals_B, ppm_BE)]
        batch = BatchView(n, n_rows, *addresses)
        if self._calls.experts_step_run(self._step, ctypes.byref(self._states), ctypes.byref(batch)):
            raise ValueError("a piece names a token, position, page, place or column that there is none of")
        self.touched_E = touched_E
        likeliest = Likeliest(tokens_B=tokens_B, log_totals_B=log_totals_B, ppm_BE=ppm_BE)
        return StepResult(logits_BV=logits_BV, shares_BE=shares_BE, likeliest=likeliest)

    def keep(self, tails: Sequence[tuple[int, int]]) -> None:
        """See ``Runner.keep``."""
        if tails and self._gated:
            places, pieces = zip(*tails, strict=True)
            self._tails_NLD[list(places)] = self._new_tails_BLD[list(pieces)]

    def begin(self, tail: int, page: int | None) -> None:
        """See ``Runner.begin``."""
        if self._gated:
            self._tails_NLD[tail] = 0 if page is None else self._page_sums_PLD[page]

    def erase(self, pages: Sequence[int], tails: Sequence[int] = ()) -> None:
        """See ``Runner.erase``."""
        for page in pages:
            self._page_bytes_PY[page] = 0
        if self._gated:
            for page in pages:
                self._page_sums_PLD[page] = 0
            for tail in tails:
                self._tails_NLD[tail] = 0

    def prepare(self, digest: str, expert: Expert) -> None:
        """See ``Runner.prepare``: packs (or maps) the expert, and keeps that for as long as it lives."""
        self._prepared[digest] = self._derive(digest, expert, poisoned=False)

    def refresh(self) -> None:
        """See ``Runner.refresh``."""
        names, poisoned = self._bank.names(), self._bank.poisoned
        held = {name: self._hold(name, poisoned=name in poisoned) for name in names[1:]}
        self._experts, self._names = held, names
        for name in [name for name, made in list(self._prepared.items()) if made.source() is None]:
            self._prepared.pop(name, None)
        experts = [one.packed for one in held.values()]
        # Once true it stays so: places may still hold sums of an expert that has gone.
        self._gated = self._gated or any(
            layer.gate_row_D is not None for expert in experts for layer in expert.layers
        )
        table = model_view(self._bank.shape, self._base, experts, self._rope)
        self._calls.experts_step_model(self._step, ctypes.byref(table))

    def size_bytes(self) -> int:
        """See ``Runner.size_bytes``; counts sums of prefixes only where gated experts made them needed."""
        states = [self._keys_values_PX]
        if self._gated:
            states += [self._page_sums_PLD, self._tails_NLD, self._new_tails_BLD]
        scratch: int = self._calls.experts_step_bytes(self._step)
        return scratch + sum(tensor.nbytes for tensor in states)

    def record(self, *, on: bool) -> None:
        """Whether steps from now on note every matrix that they multiply."""
        self._calls.experts_step_record(self._step, on)

    def recorded(self) -> list[tuple[int, int]]:
        """Address and rows of each matrix that the last step multiplied, in order."""
        n = self._calls.experts_step_recorded(self._step, None, 0)
        records = (Record * n)()
        self._calls.experts_step_recorded(self._step, records, n)
        return [(record.address, record.rows) for record in records]

    def addresses(self, name: str) -> frozenset[int]:
        """Where the matrices of a column's own lie, by its name in the bank."""
        if name == self._names[0]:
            layers = [layer.public for layer in self._base.layers]
        else:
            layers = list(self._experts[name].packed.layers)
        return frozenset(matrix.data.data_ptr() for layer in layers for matrix in matrices(layer.network))

    def _take_base(self) -> PackedBase:
        decoder = self._bank.decoder
        if self._folder is None:
            packed = pack_base(decoder, self._library)
            # Of an embedding a step reads a few rows: the decoder's own serves as well as a copy.
            moved = in_large_pages(replace(packed, embedding_VD=None))
            return replace(moved, embedding_VD=packed.embedding_VD)
        derived = self._folder.base(self._bank.base_digest, decoder)
        release_file_pages(decoder.state_dict().values())
        return derived.weights

    def _hold(self, name: str, *, poisoned: bool) -> _Held:
        source = self._bank.held(name)
        held = self._experts.get(name)
        if held is not None and held.source() is source:
            if poisoned and not held.poisoned:
                poison(held.packed)
                held.poisoned = True
            return held
        made = self._prepared.pop(name, None)
        if made is not None and made.source() is source and not poisoned:
            return made
        return self._derive(name, source, poisoned=poisoned)

    def _derive(self, name: str, source: Expert, *, poisoned: bool) -> _Held:
        if self._folder is None or poisoned:
            # What was poisoned before it came here must not go into a file under its digest.
            packed = pack_expert(source, self._library)
            return _Held(weakref.ref(source), in_large_pages(packed), poisoned)
        derived = self._folder.expert(name, source)
        release_file_pages(source.state_dict().values())
        return _Held(weakref.ref(source), derived.weights, poisoned)


@dataclass(slots=True)
class _Held:
    """A packed expert and what it was packed from: the same digest may come back as other tensors."""

    source: weakref.ref[Expert]
    packed: PackedExpert
    poisoned: bool


def _zeros(*size: int, dtype: torch.dtype) -> Tensor:
    """Zeros that start at a page of memory and take room only where they were written."""
    n_bytes = max(1, math.prod(size) * dtype.itemsize)
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(size)).view(size)


def _offsets(lengths: Iterable[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def _declared(library: Library) -> ctypes.CDLL:
    """The entries of the step, with their types."""
    calls, address = library.calls, ctypes.c_void_p
    signatures: dict[str, tuple[list[object], object]] = {
        "open": ([ctypes.c_int32], address),
        "close": ([address], None),
        "model": ([address, ctypes.POINTER(ModelView)], None),
        "run": ([address, ctypes.POINTER(StatesView), ctypes.POINTER(BatchView)], ctypes.c_int32),
        "bytes": ([address], ctypes.c_int64),
        "record": ([address, ctypes.c_int32], None),
        "recorded": ([address, ctypes.POINTER(Record), ctypes.c_int64], ctypes.c_int64),
    }
    for name, (arguments, result) in signatures.items():
        call = getattr(calls, f"experts_step_{name}")
        call.argtypes, call.restype = arguments, result
    return calls
