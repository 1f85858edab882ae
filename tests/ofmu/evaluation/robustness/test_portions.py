from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ofmu.evaluation.robustness.portions import portions


@given(st.lists(st.integers(0, 20)), st.integers(1, 30))
def test_portions_keep_order_and_bound_and_are_as_long_as_they_can_be(sizes: list[int], limit: int) -> None:
    found = list(portions(enumerate(sizes), limit))
    assert [index for portion in found for index in portion] == list(range(len(sizes)))
    for number, portion in enumerate(found):
        held = sum(sizes[index] for index in portion)
        assert held <= limit or len(portion) == 1
        if number + 1 < len(found):
            assert held + sizes[found[number + 1][0]] > limit
