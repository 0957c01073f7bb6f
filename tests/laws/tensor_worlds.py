# SPDX-License-Identifier: Apache-2.0
"""Random worlds for the laws: a base of any family and shape, experts of every kind, gated or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st
from tensor_builders import digest, random_decoder, random_expert, tiny_shape

from model_core.network.decoder import Decoder
from model_core.network.expert import Expert
from model_core.packing.forms import EXPERT_KINDS, ExpertKind
from model_core.packing.manifest import ModelShape


@dataclass(frozen=True, kw_only=True)
class World:
    """A base and its experts by digest.

    Attributes:
        seed: of all weights.
        decoder: the base.
        experts: in canonical order.
    """

    seed: int
    decoder: Decoder
    experts: dict[str, Expert]

    @property
    def names(self) -> list[str]:
        """Digests in canonical order."""
        return sorted(self.experts)

    def __repr__(self) -> str:
        made = {name[7:11]: (expert.form.kind, expert.gated) for name, expert in self.experts.items()}
        return f"World(seed={self.seed}, shape={self.decoder.shape!r}, experts={made})"


@st.composite
def shapes(draw: st.DrawFn, *, max_layers: int = 3) -> ModelShape:
    """Any family; one to four query heads, grouped keys, odd widths, heads of a size of their own."""
    family = draw(st.sampled_from(("olmo2", "llama", "olmoe")))
    n_heads = draw(st.sampled_from((1, 2, 3, 4)))
    head_dim = draw(st.sampled_from((2, 4, 6)))
    own_head = draw(st.booleans())
    return tiny_shape(
        family=family,
        n_layers=draw(st.integers(1, max_layers)),
        d_model=n_heads * head_dim + (draw(st.sampled_from((1, 5))) if own_head else 0),
        d_head=head_dim if own_head else None,
        n_heads=n_heads,
        n_kv_heads=draw(st.sampled_from([n for n in range(1, n_heads + 1) if n_heads % n == 0])),
        d_ffn=draw(st.integers(4, 30)),
        rope_theta=draw(st.sampled_from((100.0, 10_000.0, 500_000.0))),
        tie_embeddings=draw(st.booleans()),
        renormalise=draw(st.booleans()),
        clip_qkv=draw(st.sampled_from((None, 0.5))) if family == "olmoe" else None,
    )


@st.composite
def worlds(
    draw: st.DrawFn,
    *,
    min_experts: int = 1,
    max_experts: int = 12,
    max_layers: int = 3,
    kinds: Sequence[ExpertKind] = EXPERT_KINDS,
) -> World:
    """A base of any family and shape with experts of any kinds, some with gates and some without."""
    seed = draw(st.integers(0, 10_000))
    decoder = random_decoder(draw(shapes(max_layers=max_layers)), seed)
    count = draw(st.integers(min_experts, max_experts))
    gated = draw(st.sampled_from(("all", "none", "some")))
    experts = {}
    for place in range(count):
        kind = draw(st.sampled_from(tuple(kinds)))
        number = 1000 * seed + place
        has_gate = gated == "all" or (gated == "some" and place % 2 == 0)
        experts[digest(number)] = random_expert(decoder, number, gated=has_gate, kind=kind)
    return World(seed=seed, decoder=decoder, experts=dict(sorted(experts.items())))


def subsets(names: Sequence[str], *, min_size: int = 0) -> st.SearchStrategy[list[str]]:
    """Any subset of the given digests, ascending."""
    return st.sets(st.sampled_from(list(names)), min_size=min_size).map(sorted) if names else st.just([])
