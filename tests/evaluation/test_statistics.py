"""Intervals hold the truth as often as they say, and say more with more cases."""

import numpy as np
import pytest

from hallo3.evaluation.statistics import bootstrap


def test_the_interval_holds_the_median_nineteen_times_in_twenty() -> None:
    random = np.random.default_rng(0)
    found = [bootstrap(random.standard_normal(25) + 3, rounds=400) for _ in range(200)]
    assert 0.88 < np.mean([one.low <= 3 <= one.high for one in found]) < 0.99
    # An interval that is far too wide would hold it too.
    assert np.median([one.high - one.low for one in found]) < 1.2


def test_more_cases_say_more() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    few, many = bootstrap(values[:10]), bootstrap(values)
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert many.value == np.median(values)


def test_shares_have_intervals_too() -> None:
    share = bootstrap([1, 1, 1, 0], np.mean)
    assert share.value == 0.75 and share.low <= 0.5 and share.high == 1


def test_one_case_and_equal_cases_leave_no_doubt_to_show() -> None:
    for values in ([2.5], [2.5] * 9):
        assert vars(bootstrap(values)) == {"value": 2.5, "low": 2.5, "high": 2.5}


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_what_is_no_number_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one case"):
        bootstrap(values)
