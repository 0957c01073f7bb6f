# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import RecipeRefused
from model_core.training.expert_recipe import ExpertRecipe
from model_core.training.privacy import (
    MAX_EPSILON,
    PrivacyPlan,
    PrivacySettings,
    epsilon_spent,
    noise_for,
    plan_privacy,
)


def _plan(*, documents: int = 400, expected: int = 20, steps: int = 100, **changes: float) -> PrivacyPlan:
    asked = {"noise_multiplier": 1.0, "target_epsilon": 0.0, "clip_norm": 1.0, "delta": 1e-5} | changes
    return plan_privacy(
        PrivacySettings(**asked), documents=documents, expected_documents=expected, steps=steps
    )


def _exact_gaussian_epsilon(noise: float, steps: int, delta: float) -> float:
    """Epsilon of so many unsampled Gaussian steps, exactly (Balle and Wang, arXiv 1805.06530, theorem 8)."""
    ratio = math.sqrt(steps) / noise

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def spent(epsilon: float) -> float:
        return normal(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * normal(-ratio / 2 - epsilon / ratio)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def test_epsilon_is_that_of_the_library_step_by_step() -> None:
    """The plan's epsilon equals the library's accountant told of every step with the same parameters."""
    from opacus.accountants import RDPAccountant

    plan = _plan(noise_multiplier=0.9)
    told = RDPAccountant()
    for _ in range(plan.steps):
        told.step(noise_multiplier=0.9, sample_rate=0.05)
    assert plan.epsilon == pytest.approx(told.get_epsilon(delta=1e-5), rel=1e-9)
    facts = plan.facts()
    assert (facts["dp_epsilon"], facts["dp_unit"], facts["dp_sampling"]) == (
        plan.epsilon,
        "document",
        "poisson",
    )
    assert str(facts["dp_accountant"]).startswith("opacus ")


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    """More looks at the data cost more, more noise costs less."""
    base = epsilon_spent(1.0, rate=0.05, steps=100, delta=1e-5)
    assert base < epsilon_spent(1.0, rate=0.05, steps=101, delta=1e-5)
    assert base < epsilon_spent(1.0, rate=0.06, steps=100, delta=1e-5)
    assert base > epsilon_spent(1.1, rate=0.05, steps=100, delta=1e-5)
    assert base > epsilon_spent(1.0, rate=0.05, steps=100, delta=1e-4)


@settings(max_examples=10, deadline=None)
@given(noise=st.floats(2.0, 20.0), steps=st.integers(1, 60))
def test_without_sampling_epsilon_is_an_upper_bound_close_to_the_exact_one(noise: float, steps: int) -> None:
    """Where steps take every document, the exact epsilon is known: ours is above it, by a quarter at most."""
    exact = _exact_gaussian_epsilon(noise, steps, 1e-5)
    ours = epsilon_spent(noise, rate=1.0, steps=steps, delta=1e-5)
    assert exact <= ours <= 1.25 * exact + 0.01


@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.1, 120), (30.0, 1.0, 5)])
def test_noise_for_a_target_reaches_it_and_wastes_little(target: float, rate: float, steps: int) -> None:
    """The computed noise costs at most the target and nearly all of it."""
    noise = noise_for(target, rate=rate, steps=steps, delta=1e-5)
    assert 0.95 * target < epsilon_spent(noise, rate=rate, steps=steps, delta=1e-5) <= target


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"expected": 401}, "batch_rows"),
        ({"delta": 1 / 400}, "dp_delta"),
        ({"noise_multiplier": 0.05}, "dp_noise_multiplier"),
        ({"noise_multiplier": 0.0, "target_epsilon": 1e-9}, "dp_target_epsilon"),
    ],
)
def test_figures_that_protect_nothing_are_refused(changes: dict[str, float], field: str) -> None:
    """A batch beyond the data, a delta of a whole document, next to no noise, a target out of reach."""
    with pytest.raises(RecipeRefused) as refusal:
        _plan(**changes)  # type: ignore[arg-type]
    assert field in refusal.value.facts["fields"]


@pytest.mark.parametrize(
    "recipe",
    [
        {"dp_noise_multiplier": 1.0},
        {"dp_noise_multiplier": 1.0, "dp_target_epsilon": 2.0, "gated": False},
        {"dp_noise_multiplier": -1.0, "gated": False},
        {"dp_noise_multiplier": math.inf, "gated": False},
        {"dp_target_epsilon": MAX_EPSILON + 1, "gated": False},
        {"dp_clip_norm": 0.0},
        {"dp_delta": 0.0},
        {"dp_delta": 0.5},
    ],
)
def test_recipes_of_nonsense_are_refused(recipe: dict[str, float]) -> None:
    """Gates under privacy, both noise and target, and figures outside their bounds."""
    with pytest.raises(RecipeRefused):
        ExpertRecipe.of(recipe)


def test_a_recipe_asks_for_privacy_only_when_it_names_noise_or_a_target() -> None:
    """Clip norm and delta alone change nothing."""
    assert ExpertRecipe.of({"dp_clip_norm": 2.0, "dp_delta": 1e-6}).privacy is None
    asked = ExpertRecipe.of({"dp_target_epsilon": 3.0, "gated": False}).privacy
    assert asked == PrivacySettings(noise_multiplier=0, target_epsilon=3.0, clip_norm=1.0, delta=1e-5)
