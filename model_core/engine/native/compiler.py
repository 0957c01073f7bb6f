# SPDX-License-Identifier: Apache-2.0
"""Compiles the C++ sources of this package into one shared library, once per machine, and keeps it on disk.

The library is plain C to its callers: no headers of torch or Python, so compiling takes seconds and the
result depends on the compiler and the processor alone. Its file is named by a digest of all it was made from
and one of what it is, so a file that was changed is not loaded, and another compiler, processor or release
makes its own. Knows nothing of what the sources compute. Where nothing can be compiled the answer says why.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model_core.engine.native.locking import locked, not_ours

SOURCE = Path(__file__).parent / "source"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    # Products and sums are fused where the source says so, and nowhere else: another choice in another copy
    # of a kernel would give a row other bits.
    "-ffp-contract=off",
    "-fno-math-errno",
)
# What names this machine's processor, the usual way first; a compiler that knows none makes portable code.
_MACHINE_FLAGS = (("-march=native",), ("-mcpu=native",), ())
_COMPILE_TIMEOUT_S = 300.0
_LOCK_PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltLibrary:
    """A shared library for this machine.

    Attributes:
        path: where it is.
        compiler: first line of what its compiler says about itself.
        compile_s: how long compiling took; 0 where it was found on disk.
    """

    path: Path
    compiler: str
    compile_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NoLibrary:
    """Why there is no library.

    Attributes:
        reason: a sentence for operators.
    """

    reason: str


def build_library(
    folder: Path, *, compiler: str | None = None, source: Path = SOURCE
) -> BuiltLibrary | NoLibrary:
    """Finds the library for this machine in a folder, or compiles it into there.

    Several processes may call at once: one compiles and the others wait, and a file is never half written.

    Args:
        folder: where libraries are kept; made if it is missing. It must belong to this user, and no other may
            write there.
        compiler: path or name of the C++ compiler; None looks for one.
        source: folder of the sources; every ``.cpp`` in it is compiled.
    """
    program = _find(compiler)
    if program is None:
        wanted = compiler or ", ".join(COMPILERS)
        return NoLibrary(reason=f"No C++ compiler was found ({wanted}); torch computes instead.")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := not_ours(folder):
            return NoLibrary(reason=f"The folder for compiled kernels {why}; torch computes instead.")
        version = _version(program)
        inputs = _digest_inputs(program, version, source)
        if (found := _find_built(folder, inputs)) is not None:
            return BuiltLibrary(path=found, compiler=version, compile_s=0.0)
        with locked(folder / f"kernels-{inputs}.lock", patience_s=_LOCK_PATIENCE_S):
            if (found := _find_built(folder, inputs)) is not None:
                return BuiltLibrary(path=found, compiler=version, compile_s=0.0)
            return _compile(program, version, folder, inputs, source)
    except (OSError, subprocess.SubprocessError) as error:
        return NoLibrary(reason=f"The kernels could not be compiled ({error}); torch computes instead.")


def _find(compiler: str | None) -> str | None:
    names = COMPILERS if compiler is None else (compiler,)
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def _version(program: str) -> str:
    said = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=30, check=True, env=_environment()
    )
    return said.stdout.partition("\n")[0].strip()


def _environment() -> dict[str, str]:
    """What a compiler needs of an environment: where its parts are, and messages in English."""
    return {"PATH": os.defpath + os.pathsep + "/usr/local/bin", "LC_ALL": "C"}


def _digest_inputs(program: str, version: str, source: Path) -> str:
    state = hashlib.sha256()
    for part in (program, version, *FLAGS, *map(str, _MACHINE_FLAGS), _processor()):
        state.update(part.encode() + b"\0")
    for file in sorted(source.iterdir()):
        if file.suffix in {".cpp", ".hpp"}:
            state.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:24]


def _processor() -> str:
    """What decides which instructions may be used: machine, model and flags."""
    parts = [platform.machine(), platform.system()]
    with contextlib.suppress(OSError):
        kinds = ("model name", "flags", "Features", "CPU part", "CPU implementer")
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        parts += [line for line in lines if line.startswith(kinds)]
    return "\n".join(parts)


def _find_built(folder: Path, inputs: str) -> Path | None:
    """The whole and trusted library made from these inputs, if there is one; damaged ones are removed."""
    for path in sorted(folder.glob(f"kernels-{inputs}-*.so")):
        if not_ours(path) is not None:
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest()[:24] == path.stem.rpartition("-")[2]:
            return path
        path.unlink(missing_ok=True)
    return None


def _compile(program: str, version: str, folder: Path, inputs: str, source: Path) -> BuiltLibrary | NoLibrary:
    files = sorted(source.glob("*.cpp"))
    complaint = "there is nothing to compile"
    begin_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="compile-", dir=folder) as scratch:
        for machine in _MACHINE_FLAGS if files else ():
            out = Path(scratch) / "kernels.so"
            complaint = _run(program, machine, files, out)
            if not complaint:
                out.chmod(0o500)
                digest = hashlib.sha256(out.read_bytes()).hexdigest()[:24]
                path = folder / f"kernels-{inputs}-{digest}.so"
                out.replace(path)
                return BuiltLibrary(path=path, compiler=version, compile_s=time.monotonic() - begin_s)
    return NoLibrary(reason=f"{version} refused the kernels ({complaint}); torch computes instead.")


def _run(program: str, machine: tuple[str, ...], files: list[Path], out: Path) -> str:
    """Compiles files side by side and links them; returns the first complaint, empty where there is none."""

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [program, *FLAGS, *machine, *arguments],
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
            check=False,
            env=_environment() | {"TMPDIR": str(out.parent)},
        )
        if done.returncode == 0:
            return ""
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        return said.strip()[:300] or f"status {done.returncode}"

    objects = [out.parent / f"{file.stem}.o" for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = list(zip(files, objects, strict=True))
        complaints = threads.map(lambda part: call("-c", "-o", str(part[1]), str(part[0])), parts)
    first = next((one for one in complaints if one), "")
    return first or call("-shared", "-o", str(out), *map(str, objects))
