# SPDX-License-Identifier: Apache-2.0
"""The reconciler changes the difference and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.deploy import host_application as application_name
from cluster.hosting.reconciler import Difference, compare

BASES = tuple(f"sha256:{number:x}" * 1 + "0" * 63 for number in range(4))
states = st.sampled_from(["RUNNING", "DEPLOYING", "UNHEALTHY", "DEPLOY_FAILED", "NOT_STARTED", "DELETING"])


@given(st.frozensets(st.sampled_from(BASES)), st.dictionaries(st.sampled_from(BASES), states))
def test_needed_hosts_run_unneeded_ones_stop_healthy_ones_are_left_alone(
    needed: frozenset[str], running: dict[str, str]
) -> None:
    """Every needed base has a host or gets one; what Serve repairs by itself is not touched."""
    applications = {application_name(base): state for base, state in running.items()} | {"gateway": "RUNNING"}
    difference = compare(needed, applications)
    assert set(difference.start) == needed - set(running)
    failed = {base for base, state in running.items() if state in ("DEPLOY_FAILED", "NOT_STARTED")}
    assert set(difference.restart) == needed & failed
    surplus = {base for base, state in running.items() if base not in needed and state != "DELETING"}
    assert set(difference.stop) == {application_name(base) for base in surplus}
    assert "gateway" not in difference.stop


def test_nothing_to_do_is_nothing() -> None:
    """A marketplace at rest stays at rest."""
    assert compare(frozenset(BASES[:1]), {"gateway": "RUNNING", application_name(BASES[0]): "RUNNING"}) == (
        Difference()
    )


def test_nothing_is_started_before_the_gateway() -> None:
    """The reconciler never starts Serve itself: it would come up with an HTTP proxy that nobody asked for."""
    assert compare(frozenset(BASES), {}) == Difference()
    assert compare(frozenset(BASES), {"somebody-elses": "RUNNING"}) == Difference()
    assert compare(frozenset(BASES), {"gateway": "DEPLOYING"}).start == tuple(sorted(BASES))
