# SPDX-License-Identifier: Apache-2.0
"""What differentially private training costs: noise, clipping, sampling rate and the epsilon they add up to.

The mechanism is DP-SGD (Abadi et al., arXiv 1607.00133): each step takes every document with the same
probability, independently; clips each document's gradient; adds Gaussian noise. **The unit is the document**:
the guarantee compares a data set with the same one without, or with one more, document. Epsilon is added up
by the Renyi accountant of Opacus, an upper bound.

The number of documents is taken as known to everybody (the data card states it). This module does no
training; ``private_gradients`` does, and draws what this module assumes.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from dataclasses import dataclass

from model_core.errors import RecipeRefused

UNIT = "document"
SAMPLING = "poisson"
# Beyond this an observer who knows all other documents can tell nearly for sure: the figure would mislead.
MAX_EPSILON = 50.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacySettings:
    """What a recipe asks for.

    Attributes:
        noise_multiplier: standard deviation of the noise over ``clip_norm``; 0 if a target is given.
        target_epsilon: from which the noise is computed; 0 if the noise is given.
        clip_norm: largest length of one document's gradient (C).
        delta: probability with which the guarantee may fail.
    """

    noise_multiplier: float
    target_epsilon: float
    clip_norm: float
    delta: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyPlan:
    """What a run does and what it costs in all.

    Attributes:
        epsilon: of the whole run, an upper bound.
        delta: beside it.
        noise_multiplier: standard deviation of the noise over ``clip_norm``.
        clip_norm: largest length of one document's gradient.
        sampling_rate: probability with which a step takes a document.
        expected_documents: documents a step on average; what the noised sum is divided by.
        documents: N.
        steps: of the run.
    """

    epsilon: float
    delta: float
    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    expected_documents: int
    documents: int
    steps: int

    def facts(self) -> dict[str, float | str]:
        """For the manifest's recipe: what is guaranteed, for which unit, and who added it up."""
        return {
            "dp_epsilon": self.epsilon,
            "dp_delta": self.delta,
            "dp_noise_multiplier": self.noise_multiplier,
            "dp_clip_norm": self.clip_norm,
            "dp_sampling_rate": self.sampling_rate,
            "dp_steps": self.steps,
            "dp_unit": UNIT,
            "dp_neighbours": "add-or-remove",
            "dp_sampling": SAMPLING,
            "dp_accountant": accountant(),
        }


def plan_privacy(
    settings: PrivacySettings, *, documents: int, expected_documents: int, steps: int
) -> PrivacyPlan:
    """Works out noise and epsilon before anything is trained.

    Args:
        settings: what the recipe asks for; exactly one of noise and target.
        documents: N, those that may be sampled.
        expected_documents: documents a step on average.
        steps: of the whole run.

    Raises:
        RecipeRefused: a figure protects nothing, cannot be reached or contradicts another.
    """
    if expected_documents > documents:
        raise RecipeRefused(
            f"A step would take {expected_documents} documents on average, but there are {documents}. "
            "Lower batch_rows or accumulation.",
            fields=["batch_rows", "accumulation"],
        )
    if settings.delta * documents >= 1:
        raise RecipeRefused(
            f"dp_delta must be below 1 / {documents} documents: at that size publishing one whole document "
            "would count as private.",
            fields=["dp_delta"],
        )
    rate = expected_documents / documents
    noise = settings.noise_multiplier
    if settings.target_epsilon:
        noise = noise_for(settings.target_epsilon, rate=rate, steps=steps, delta=settings.delta)
    epsilon = epsilon_spent(noise, rate=rate, steps=steps, delta=settings.delta)
    if not epsilon <= MAX_EPSILON:
        raise RecipeRefused(
            f"This noise gives epsilon {epsilon:.0f}, which protects nothing (at most {MAX_EPSILON:.0f}). "
            "Raise dp_noise_multiplier, or lower steps or the share of documents a step takes.",
            fields=["dp_noise_multiplier"],
        )
    return PrivacyPlan(
        epsilon=epsilon,
        delta=settings.delta,
        noise_multiplier=noise,
        clip_norm=settings.clip_norm,
        sampling_rate=rate,
        expected_documents=expected_documents,
        documents=documents,
        steps=steps,
    )


def epsilon_spent(noise_multiplier: float, *, rate: float, steps: int, delta: float) -> float:
    """Epsilon of so many steps, an upper bound (Renyi accountant, Poisson-sampled Gaussian)."""
    from opacus.accountants import RDPAccountant

    spent = RDPAccountant()
    spent.history = [(noise_multiplier, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a finer grid of orders might give a smaller bound
        return float(spent.get_epsilon(delta=delta))


def noise_for(target_epsilon: float, *, rate: float, steps: int, delta: float) -> float:
    """Noise multiplier with which so many steps cost at most the target, by bisection from above.

    Raises:
        RecipeRefused: no noise reaches the target.
    """

    def spent(noise: float) -> float:
        return epsilon_spent(noise, rate=rate, steps=steps, delta=delta)

    low, high = 0.0, 1.0
    while spent(high) > target_epsilon:
        low, high = high, 2 * high
        if high > 1e6:
            raise RecipeRefused(
                f"No noise reaches epsilon {target_epsilon} at delta {delta}. Raise dp_target_epsilon.",
                fields=["dp_target_epsilon"],
            )
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > target_epsilon else (low, middle)
    return high


def accountant() -> str:
    """Name and version of what added epsilon up."""
    return f"opacus {importlib.metadata.version('opacus')} rdp"
