# SPDX-License-Identifier: Apache-2.0
"""How memory is counted and growth is told from noise, on accounts made up for it."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from examples.storm.held import mappings
from examples.storm.soak import Sample, growth_of, slope_per_minute

_SMAPS = """\
7f0000000000-7f0000100000 rw-p 00000000 fe:01 42 /home/a b/artifacts/e.safetensors
Size:               1024 kB
Pss:                 512 kB
Anonymous:            64 kB
VmFlags: rd wr mr mw me ac
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
Size:               2048 kB
Pss:                 100 kB
Anonymous:           100 kB
VmFlags: rd wr
"""


def test_every_mapping_is_told_with_its_path_and_figures() -> None:
    """Paths with spaces stay whole, mappings without a file have none, and flags are no figures."""
    found = list(mappings(_SMAPS))
    assert [path for path, _ in found] == ["/home/a b/artifacts/e.safetensors", ""]
    assert found[0][1] == {"Size": 1024, "Pss": 512, "Anonymous": 64}
    assert found[1][1]["Anonymous"] == 100


@given(growth=st.integers(0, 20 << 20), seed=st.integers(0, 1000))
def test_growth_is_found_below_noise(growth: int, seed: int) -> None:
    """A straight growth is measured to within half a megabyte a minute under a megabyte of noise."""
    chance = random.Random(seed)
    samples = [
        Sample(
            part="host",
            at_s=5.0 * place,
            memory_bytes=int(300e6 + growth * place / 12 + chance.uniform(-1e6, 1e6)),
            files=9,
        )
        for place in range(120)
    ]
    assert abs(slope_per_minute(samples) - growth) < 500_000


def test_few_samples_show_no_growth() -> None:
    """A process that was just started is not said to grow."""
    samples = [Sample(part="host", at_s=at_s, memory_bytes=int(at_s * 1e9), files=1) for at_s in (1.0, 2.0)]
    assert slope_per_minute(samples) == 0.0


def _life(minutes: int, bytes_per_minute: int, files_per_minute: int) -> list[Sample]:
    """One that warms up steeply for two minutes, then grows as told, with bursts of files in between."""
    return [
        Sample(
            part="host",
            at_s=600.0 + at_s,
            memory_bytes=int(min(at_s, 120) * 1e6 + bytes_per_minute * at_s / 60),
            files=30 + int(files_per_minute * at_s / 60) + (40 if at_s % 35 == 0 else 0),
        )
        for at_s in range(0, 60 * minutes, 5)
    ]


def test_what_grows_for_ever_is_told_from_what_warms_up() -> None:
    """A steep start and bursts of open files are no leak; a slope that stays is, of memory and of files."""
    found = [growth_of(_life(10, *slopes)) for slopes in ((0, 0), (5 << 20, 0), (0, 6))]
    assert [(one.of_memory, one.of_files) for one in found if one] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_who_lived_shortly_says_nothing_of_growth() -> None:
    """A host that was killed in its first minutes is not said to grow, however steeply it began."""
    assert growth_of(_life(3, 50 << 20, 50)) is None
