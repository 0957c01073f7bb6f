# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity are found wherever they stand, and large finite numbers are not taken for them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model_core.network.finite import is_finite, not_finite

dtypes = st.sampled_from((torch.float32, torch.bfloat16, torch.float16))
shapes = st.tuples(st.integers(0, 40), st.integers(1, 40))
rotten = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from((float("nan"), float("inf"), -float("inf"))))
)


@given(dtype=dtypes, shape=shapes, wrong=rotten, transposed=st.booleans())
def test_tensors_are_judged_as_by_looking_at_each_number(
    dtype: torch.dtype, shape: tuple[int, int], wrong: list[tuple[int, float]], transposed: bool
) -> None:
    """Also where infinities of both signs would cancel each other out."""
    tensor = torch.randn(shape).to(dtype)
    for place, value in wrong if tensor.numel() else []:
        tensor.view(-1)[place % tensor.numel()] = value
    seen = tensor.T if transposed else tensor
    assert is_finite(seen) == bool(torch.isfinite(seen).all())


@given(dtype=dtypes)
def test_numbers_whose_sum_leaves_the_format_are_finite(dtype: torch.dtype) -> None:
    """As are the largest ones that there are."""
    assert is_finite(torch.full((100,), torch.finfo(dtype).max).to(dtype))


def test_those_that_are_not_finite_are_named_in_order() -> None:
    """Integers never are among them."""
    nan, fine = torch.tensor([1.0, float("nan")]), torch.ones(3)
    tensors = {"c": nan, "b": fine, "a": nan, "i": torch.ones(2, dtype=torch.int8)}
    assert not_finite(tensors) == ["a", "c"]
