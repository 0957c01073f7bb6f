# SPDX-License-Identifier: Apache-2.0
"""llama.cpp over the same weights, through its Python package: one batch a step, the likeliest token each.

Keys and values are stored in the weights' format. Its fused attention rounds to fp16 and is therefore off
where fp32 is compared.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.case import Format
from benchmarks.serving.trace import Trace

_BATCH_TOKENS = 1024
# Of ggml's types; the package names only some of them.
_F32, _BF16 = 0, 30
_FUSED_OFF, _FUSED_ON = 0, 1


def why_missing() -> str | None:
    """Why llama.cpp cannot take part; None if it can."""
    try:
        import gguf  # noqa: F401
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"llama.cpp is left out: {error}; `make bench-serving` installs the extra 'bench'."
    return None


class LlamaModel:
    """A model of llama.cpp.

    Args:
        path: GGUF file.
        number_format: of its weights.
        threads: that compute.
    """

    def __init__(self, path: Path, *, number_format: Format, threads: int) -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._threads, self._format = threads, number_format
        model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not model:
            raise RuntimeError("llama.cpp does not load the file that was written for it.")
        self._model = model
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def context(self, *, sequences: int, positions: int) -> LlamaContext:
        """A cache for so many sequences of so many positions each."""
        api = self._api
        settings = api.llama_context_default_params()
        settings.n_ctx = sequences * (-(-positions // 256) * 256)
        settings.n_seq_max = sequences
        settings.n_batch = settings.n_ubatch = _BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = self._threads
        exact = self._format == "fp32"
        settings.type_k = settings.type_v = _F32 if exact else _BF16
        settings.flash_attn_type = _FUSED_OFF if exact else _FUSED_ON
        handle = api.llama_init_from_model(self._model, settings)
        if not handle:
            raise RuntimeError("llama.cpp makes no context of these sizes.")
        return LlamaContext(api, handle, self._vocabulary)

    def close(self) -> None:
        """Lets the model go."""
        self._api.llama_model_free(self._model)


class LlamaContext:
    """A cache of llama.cpp and a batch."""

    def __init__(self, api: Any, handle: Any, vocabulary: int) -> None:
        self._api, self._handle, self._vocabulary = api, handle, vocabulary
        self._batch = api.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def turn(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Trace:
        """One turn: all prompts, then a step for all sequences at a time."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)
        count = len(prompts)
        moments: list[list[float]] = [[] for _ in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        began = time.perf_counter()
        rows = [(index, 0, list(prompt)) for index, prompt in enumerate(prompts)]
        while rows:
            rows = self._fill(rows, moments, tokens)
        for step in range(1, new_tokens):
            rows = [(index, len(prompts[index]) + step - 1, [tokens[index][-1]]) for index in range(count)]
            self._fill(rows, moments, tokens)
        return Trace(
            began_s=began,
            moments_s=tuple(tuple(found) for found in moments),
            tokens=tuple(tuple(found) for found in tokens),
        )

    def close(self) -> None:
        """Lets the cache go."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._handle)

    def _fill(
        self, rows: list[tuple[int, int, list[int]]], moments: list[list[float]], tokens: list[list[int]]
    ) -> list[tuple[int, int, list[int]]]:
        """Computes as much of (sequence, first position, ids) as fits a batch; returns what is left."""
        batch, place, last = self._batch, 0, []
        while rows and place < _BATCH_TOKENS:
            index, start, ids = rows[0]
            taken, rest = ids[: _BATCH_TOKENS - place], ids[_BATCH_TOKENS - place :]
            for offset, token in enumerate(taken):
                batch.token[place], batch.pos[place] = token, start + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, index
                batch.logits[place] = not rest and offset == len(taken) - 1
                place += 1
            if rest:
                rows = [(index, start + len(taken), rest), *rows[1:]]
            else:
                last.append((index, place - 1))
                rows = rows[1:]
        batch.n_tokens = place
        if self._api.llama_decode(self._handle, batch):
            raise RuntimeError("llama.cpp could not compute a batch.")
        for index, row in last:
            logits = self._api.llama_get_logits_ith(self._handle, row)
            tokens[index].append(int(np.ctypeslib.as_array(logits, shape=(self._vocabulary,)).argmax()))
        now = time.perf_counter()
        for index, _ in last:
            moments[index].append(now)
        return rows
