# SPDX-License-Identifier: Apache-2.0
"""Compiling on the machine: once, into a file that nobody else can have written."""

from __future__ import annotations

import ctypes
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_core.engine.native.compiler import (
    COMPILERS,
    SOURCE,
    BuiltLibrary,
    NoLibrary,
    build_library,
)

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS), reason="there is no C++ compiler here"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source of one function."""
    folder = tmp_path / "source"
    folder.mkdir()
    visible = '__attribute__((visibility("default")))'
    (folder / "number.cpp").write_text(f'extern "C" {visible} int number() {{ return 7; }}\n')
    return folder


def built(found: BuiltLibrary | NoLibrary) -> BuiltLibrary:
    """The library, or the reason why there is none as a failure."""
    assert isinstance(found, BuiltLibrary), found
    return found


@needs_compiler
def test_a_library_is_compiled_once_and_found_again(tmp_path: Path, source: Path) -> None:
    """The second call compiles nothing and gives the same file, which works."""
    first = built(build_library(tmp_path / "kernels", source=source))
    second = built(build_library(tmp_path / "kernels", source=source))
    assert second.path == first.path
    assert first.compile_s > 0.0 == second.compile_s
    assert ctypes.CDLL(str(first.path)).number() == 7


@needs_compiler
def test_a_changed_source_is_another_library(tmp_path: Path, source: Path) -> None:
    """The name covers every source and header."""
    first = built(build_library(tmp_path / "kernels", source=source))
    (source / "more.hpp").write_text("// more\n")
    assert built(build_library(tmp_path / "kernels", source=source)).path != first.path


@needs_compiler
def test_a_damaged_library_is_not_loaded_but_made_anew(tmp_path: Path, source: Path) -> None:
    """Its name holds the digest of its bytes."""
    first = built(build_library(tmp_path / "kernels", source=source))
    data = first.path.read_bytes()
    first.path.unlink()
    first.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = built(build_library(tmp_path / "kernels", source=source))
    assert again.compile_s > 0.0
    assert ctypes.CDLL(str(again.path)).number() == 7


@needs_compiler
def test_several_callers_at_once_compile_once(tmp_path: Path, source: Path) -> None:
    """One compiles, the others wait and find what it made."""
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(build_library, tmp_path / "kernels", source=source) for _ in range(4)]
        found = [built(call.result()) for call in calls]
    assert len({one.path for one in found}) == 1
    assert sum(one.compile_s > 0.0 for one in found) == 1
    assert not list((tmp_path / "kernels").glob("compile-*"))


@needs_compiler
def test_a_source_that_does_not_compile_says_so(tmp_path: Path, source: Path) -> None:
    """The compiler's own words are in the reason."""
    (source / "number.cpp").write_text("this is no program\n")
    found = build_library(tmp_path / "kernels", source=source)
    assert isinstance(found, NoLibrary)
    assert "error" in found.reason


def test_without_a_compiler_the_reason_names_what_was_looked_for(tmp_path: Path) -> None:
    """An operator learns which program is missing."""
    found = build_library(tmp_path / "kernels", compiler="no-such-compiler")
    assert isinstance(found, NoLibrary)
    assert "no-such-compiler" in found.reason


@needs_compiler
def test_code_that_others_could_have_written_is_not_loaded(tmp_path: Path, source: Path) -> None:
    """A folder that every user may write to is refused, and so is a link in its place."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(open_to_all)
    for folder in (open_to_all, tmp_path / "link"):
        found = build_library(folder, source=source)
        assert isinstance(found, NoLibrary)
        assert "folder" in found.reason


def test_the_sources_are_part_of_the_package() -> None:
    """They lie beside the module, where the wheel puts them too."""
    assert {"panels.cpp", "pool.cpp"} <= {path.name for path in SOURCE.iterdir()}
