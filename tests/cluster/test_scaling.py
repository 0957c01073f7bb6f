# SPDX-License-Identifier: Apache-2.0
"""How many replicas: enough for the load, never swinging, and understood by Serve."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosting.scaling import CHOICES, TOKENS, HostScaling, wanted_replicas
from cluster.settings import Settings

LOADS = st.lists(st.floats(0, 500), min_size=1, max_size=8)


@given(st.integers(1, 8), LOADS, LOADS)
def test_there_are_always_enough_and_never_needlessly_many(
    present: int, choices: list[float], tokens: list[float]
) -> None:
    """No replica would have more than it should, and one fewer would have too little room to spare."""
    wanted = wanted_replicas(present, choices, tokens, choices_each=32, tokens_each=100)
    need = max(sum(choices) / 32, sum(tokens) / 100)
    assert wanted >= max(1, need)
    if wanted < present:
        assert need <= 0.7 * wanted + 1e-9
    if wanted > present:
        assert wanted < need + 1


@given(LOADS, st.integers(1, 8))
def test_number_does_not_swing_under_the_same_load(load: list[float], present: int) -> None:
    """Asked again with what it wanted, it wants the same."""
    once = wanted_replicas(present, load, [0.0], choices_each=32, tokens_each=100)
    assert wanted_replicas(once, load, [0.0], choices_each=32, tokens_each=100) == once


def test_policy_reads_what_replicas_say(tmp_path: object) -> None:
    """Long answers count by their tokens, many short ones by their number; nothing said means no load."""
    policy = HostScaling(choices_each=10, tokens_each=1000)

    def asked(said: dict[str, dict[str, float]]) -> int:
        return policy(SimpleNamespace(current_num_replicas=1, aggregated_metrics=said))[0]

    assert asked({CHOICES: {"a": 25.0}, TOKENS: {"a": 100.0}}) == 3
    assert asked({CHOICES: {"a": 2.0}, TOKENS: {"a": 1500.0, "b": 600.0}}) == 3
    assert asked({}) == 1


def test_serve_takes_the_policy_only_where_a_range_is_asked_for() -> None:
    """A fixed number stays fixed; a range carries our policy by value, which Serve can read back."""
    from cluster.hosting.host import _number_of_replicas

    assert _number_of_replicas(Settings(host_replicas=3)) == {"num_replicas": 3}
    config = _number_of_replicas(Settings(host_replicas=1, host_replicas_max=4))["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert config.policy.policy_function == "cluster.hosting.scaling:HostScaling"
