# SPDX-License-Identifier: Apache-2.0
"""The compiled library as Python sees it: pools of threads, and products of panels and rows.

Addresses go in and out as numbers: whoever calls keeps the tensors alive. Every call lets other Python
threads run meanwhile. Knows nothing of decoders.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from torch import Tensor

from model_core.engine.native.compiler import BuiltLibrary, NoLibrary, build_library
from model_core.engine.native.panels import KINDS, MatrixView, Packed, PanelKind

_P, _I64, _I32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class Library:
    """The functions of a compiled library.

    Args:
        built: where it is; loaded here.
    """

    def __init__(self, built: BuiltLibrary) -> None:
        self.built = built
        self.calls = calls = ctypes.CDLL(str(built.path))
        matrix = ctypes.POINTER(MatrixView)
        calls.experts_pool_new.argtypes, calls.experts_pool_new.restype = [_I32, _I32], _P
        calls.experts_pool_free.argtypes, calls.experts_pool_free.restype = [_P], None
        calls.experts_multiply.argtypes = [_P, matrix, _P, _I64, _I64, _P, _I64, _I32]
        calls.experts_multiply.restype = None
        calls.experts_multiply_gated.argtypes = [_P, matrix, matrix, _P, _I64, _I64, _P, _I64]
        calls.experts_multiply_gated.restype = None
        calls.experts_multiply_panels.argtypes = [matrix, _I64, _I64, _P, _I64, _I64, _P, _I64, _I32]
        calls.experts_multiply_panels.restype = None
        calls.experts_pool_count.argtypes, calls.experts_pool_count.restype = [_P, _I64, _P], None
        calls.experts_short_pays.argtypes, calls.experts_short_pays.restype = [_I32], _I32
        calls.experts_count_exponents.argtypes = [_P, _I64, _I32, _P]
        calls.experts_count_exponents.restype = None
        calls.experts_shorten.argtypes = [_P, _I64, _I64, _I32, _P, _P, _P, _P]
        calls.experts_shorten.restype = None
        calls.experts_exp.argtypes, calls.experts_exp.restype = [_P, _P, _I64], None
        calls.experts_likeliest.argtypes, calls.experts_likeliest.restype = [_P, _I64, _P, _P], None
        calls.experts_shares_ppm.argtypes, calls.experts_shares_ppm.restype = [_P, _I64, _P], None

    def short_pays(self, kind: PanelKind) -> bool:
        """Whether weights of a kind are multiplied sooner with short exponents on this processor."""
        return bool(self.calls.experts_short_pays(KINDS.index(kind)))


def load_library(folder: Path, *, compiler: str | None = None) -> Library | NoLibrary:
    """Compiles (or finds) and loads the library; see ``build_library``."""
    built = build_library(folder, compiler=compiler)
    if isinstance(built, NoLibrary):
        return built
    try:
        return Library(built)
    except (OSError, AttributeError) as error:
        return NoLibrary(reason=f"The compiled kernels cannot be loaded ({error}); torch computes instead.")


class Pool:
    """Threads that share products.

    Args:
        library: whose.
        threads: how many compute, the calling one counted.
        spin_us: how long an idle thread watches for work before it sleeps.
    """

    def __init__(self, library: Library, threads: int, *, spin_us: int = 50) -> None:
        self.library, self.threads = library, threads
        self.handle: int = library.calls.experts_pool_new(max(1, threads), spin_us)

    def close(self) -> None:
        """Ends the threads; nothing may run on the pool any more."""
        if self.handle:
            self.library.calls.experts_pool_free(self.handle)
            self.handle = 0

    def multiply(self, matrix: Packed, x_RI: Tensor, y_RO: Tensor, *, add: bool = False) -> None:
        """``y = x W^T``, or added to ``y``.

        Args:
            matrix: the packed W.
            x_RI: rows, fp32, each contiguous.
            y_RO: where results go, fp32, each row contiguous.
            add: whether they are added to what is there.
        """
        view = ctypes.byref(matrix.view())
        rows = x_RI.shape[0]
        self.library.calls.experts_multiply(
            self.handle, view, x_RI.data_ptr(), x_RI.stride(0), rows, y_RO.data_ptr(), y_RO.stride(0), add
        )

    def multiply_gated(self, gate: Packed, up: Packed, x_RI: Tensor, y_RF: Tensor) -> None:
        """``y = silu(x gate^T) * (x up^T)``; arguments as for ``multiply``."""
        gate_view, up_view = ctypes.byref(gate.view()), ctypes.byref(up.view())
        x, y, rows = x_RI.data_ptr(), y_RF.data_ptr(), x_RI.shape[0]
        self.library.calls.experts_multiply_gated(
            self.handle, gate_view, up_view, x, x_RI.stride(0), rows, y, y_RF.stride(0)
        )
