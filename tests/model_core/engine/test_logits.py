# SPDX-License-Identifier: Apache-2.0
"""Passes over rows of logits: what torch would say, row by row, and in the calling thread alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.engine.logits import (
    block_sums,
    copied,
    finite_rows,
    largest,
    log_chances,
    rows_of,
    weights_at,
)

_DRAWS = """
import os, numpy, torch
from model_core.engine.logits import copied, finite_rows, rows_of
from model_core.engine.requests import Sampling
from model_core.engine.sampling import adjust, draw, log_probabilities
torch.set_num_threads(4)
logits = torch.from_numpy(4 * numpy.random.default_rng(0).standard_normal((32, 8192), numpy.float32))
before = len(os.listdir("/proc/self/task"))
rows = [Sampling(temperature=0.0), Sampling(), Sampling(top_p=0.9), Sampling(logit_bias=((1, 1.0),))] * 8
kept = rows_of(logits, list(range(1, 32)))
finite_rows(kept)
tokens = draw(adjust(kept, rows[1:], [()] * 31), rows[1:], [0.5] * 31)
log_probabilities(kept, tokens, rows[1:])
quiet = len(os.listdir("/proc/self/task")) - before
torch.log_softmax(logits, -1)
print(quiet, len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_drawing_wakes_no_thread_of_torch() -> None:
    """A fresh process with four torch threads draws for 31 rows in one; torch's own pass starts others."""
    found = subprocess.run(
        [sys.executable, "-c", _DRAWS], capture_output=True, text=True, check=True, timeout=120
    )
    quiet, loud = map(int, found.stdout.split())
    assert quiet == 0
    assert loud > 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), n_tokens=st.sampled_from([1, 5, 256, 700, 8200]))
def test_rows_are_computed_alike_alone_and_together(seed: int, n: int, n_tokens: int) -> None:
    """No bit of a row depends on how many there are, and all are what torch says within rounding."""
    logits = 4 * torch.randn(n, n_tokens, generator=torch.Generator().manual_seed(seed))
    heat = torch.full((n, 1), 0.7)
    together = (log_chances(logits), weights_at(logits, heat), block_sums(logits, 256), largest(logits))
    for row in range(n):
        own, one = logits[row : row + 1], heat[:1]
        alone = (log_chances(own), weights_at(own, one), block_sums(own, 256), largest(own))
        assert all(torch.equal(a[row], b[0]) for a, b in zip(together, alone, strict=True))
    assert torch.allclose(together[0], torch.log_softmax(logits, -1), atol=1e-5)
    scaled = logits.double() / 0.7
    assert torch.allclose(together[1].double(), (scaled - scaled.amax(-1, keepdim=True)).exp(), atol=1e-6)
    assert together[2].shape == (n, -(-n_tokens // 256))
    assert torch.allclose(together[2].sum(-1), logits.sum(-1), atol=1e-2)
    assert torch.equal(together[3], logits.argmax(-1))


def test_one_bad_number_is_found_in_its_row_alone() -> None:
    """NaN and both infinities make their own row not finite."""
    logits = torch.zeros(5, 300)
    logits[1, 7], logits[2, 299], logits[4, 0] = torch.nan, torch.inf, -torch.inf
    assert finite_rows(logits) == [True, False, False, True, False]


def test_rows_are_taken_in_the_order_asked_for() -> None:
    """All rows in order are the tensor itself, others a copy; a copy shares nothing."""
    logits = torch.arange(6.0).view(3, 2)
    assert rows_of(logits, [0, 1, 2]) is logits
    assert rows_of(logits, [2, 0]).tolist() == [[4.0, 5.0], [0.0, 1.0]]
    other = copied(logits)
    other.zero_()
    assert logits.sum() == 15
