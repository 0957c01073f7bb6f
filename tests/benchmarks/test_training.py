# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest
import torch

from benchmarks.training.__main__ import speed_rows
from benchmarks.training.case import Case
from benchmarks.training.memory import peak_resident_bytes
from benchmarks.training.peak import PeakMeter, products
from benchmarks.training.sides import flex_olmo
from benchmarks.training.turns import Side, interleave

_TOY = Case(name="toy", layers=2, width=16, inner=24, heads=2, vocabulary=64, rows=2, positions=16)


def test_both_sides_train_and_give_rows() -> None:
    """The whole measurement at a toy size: our loop and transformers' own take turns and both end."""
    speed, share = speed_rows(_TOY, steps=1, threads=1, warm_up=1)
    assert speed.peer is not None
    assert min(speed.ours, speed.peer) > 0
    assert speed.ratio == pytest.approx(speed.ours / speed.peer)
    assert speed.holds is not None
    assert share.ratio is not None
    assert 0 < share.ratio < 1


def test_the_public_half_of_the_peer_stays_frozen() -> None:
    """The peer trains the set that we train: expert 0, its router row and the rest get no gradient."""
    model = flex_olmo(_TOY, "eager")
    ids = torch.arange(32).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if ".mlp." not in name:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None
        assert not parameter.grad[0].any(), name
        assert parameter.grad[1].any(), name


def test_loops_take_turns_and_none_runs_ahead() -> None:
    """Each loop does exactly one step a turn, in order, and stands still between."""
    seen: list[str] = []

    def loop(name: str) -> Callable[[Callable[[], bool]], None]:
        def train(pause: Callable[[], bool]) -> None:
            ended = False
            while not ended:
                seen.append(name)
                ended = pause()

        return train

    taken = interleave({"a": loop("a"), "b": loop("b")}, steps=2, warm_up=1, threads=1)
    assert seen == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 2, "b": 2}


def test_a_loop_that_fails_is_heard() -> None:
    """An error in a side ends the measurement with that error instead of waiting for ever."""

    def broken(_pause: Callable[[], bool]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Side(broken, threads=1).step()


def test_the_peak_counts_every_product_of_a_step() -> None:
    """Its flops are those of the written formula: forward, and backward of nothing that is frozen."""
    tokens, width, inner, layers = 32, 16, 24, 2
    square, wide = 2 * tokens * width * width, 2 * tokens * width * inner
    attention = 2 * 2 * 16**2 * 16
    wanted = square * (4 * layers + 4 * (layers - 1))
    # Forward of two networks, own weights in every layer, inputs of both above the first, and the own
    # network's inner gradient in the first.
    wanted += wide * (6 * layers + 3 * layers + 6 * (layers - 1) + 1)
    wanted += 2 * 2 * tokens * width * 64
    wanted += attention * (layers + 2.5 * (layers - 1))
    assert sum(ways[0].count * ways[0].flops for ways in products(_TOY)) == pytest.approx(wanted)
    meter = PeakMeter(_TOY, threads=1)
    meter.measure(1)
    assert meter.peak().flops == pytest.approx(wanted)
    assert meter.peak().seconds > 0


def test_the_peak_of_memory_is_kept_after_it_is_given_back() -> None:
    """The figure rises with what a process touches, and stays when that is gone."""
    before = peak_resident_bytes()
    size = before - psutil.Process().memory_info().rss + 64 * 2**20
    touched = b"\x01" * size
    assert len(touched) == size
    del touched
    assert peak_resident_bytes() - before >= 48 * 2**20
