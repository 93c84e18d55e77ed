"""Intervals hold the truth as often as they say, and say more with more cases."""

import numpy as np
import pytest

from hallo3.evaluation.statistics import bootstrap, crossed_bootstrap, crossed_difference, frechet_distance


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


def test_trainings_count_as_well_as_cases() -> None:
    random = np.random.default_rng(2)
    cases = random.standard_normal(30)
    alike, apart = cases + np.zeros((2, 1)), cases + np.array([[0.0], [4.0]])
    width = {
        name: one.high - one.low
        for name, one in (("alike", crossed_bootstrap(alike)), ("apart", crossed_bootstrap(apart)))
    }
    assert crossed_bootstrap(apart).value == pytest.approx(cases.mean() + 2)
    assert width["apart"] > 3 * width["alike"]


def test_missing_cases_are_left_out() -> None:
    values = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, 3.0]])
    found = crossed_bootstrap(values)
    assert (found.value, found.low, found.high) == (2, 1, 3)
    with pytest.raises(ValueError, match="at least one number"):
        crossed_bootstrap(np.full((2, 3), np.nan))


def test_a_difference_on_the_same_cases_is_surer_than_the_cases_are() -> None:
    random = np.random.default_rng(3)
    hard = 5 * random.standard_normal(20)
    a, b = (hard + shift + 0.1 * random.standard_normal((2, 20)) for shift in (1.0, 0.0))
    found = crossed_difference(a, b)
    assert 0.8 < found.low < found.value < found.high < 1.2
    assert crossed_bootstrap(a).high - crossed_bootstrap(a).low > 2
    assert crossed_difference(a, a, same_seeds=True).low == crossed_difference(a, a, same_seeds=True).high == 0
    # What one side lacks is not compared.
    b[:, 0] = np.nan
    assert crossed_difference(a, b).value == pytest.approx((a - b)[:, 1:].mean())


def test_frechet_distance_is_that_of_the_normal_distributions() -> None:
    random = np.random.default_rng(4)
    a = random.standard_normal((50_000, 3)) * [1, 2, 3]
    b = random.standard_normal((50_000, 3)) * [2, 2, 1] + [0, 1, 0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(1 + 1 + 0 + 4, rel=0.03)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a[::-1], b) == pytest.approx(frechet_distance(a, b)), "the order says nothing"
