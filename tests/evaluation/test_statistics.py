"""Intervals hold the truth as often as they say, and say more with more cases."""

import numpy as np
import pytest

from hallo3.evaluation.statistics import (
    Spread,
    bootstrap,
    holm,
    kernel_distance,
    seed_spread,
    trained_difference,
    trained_mean,
)


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


def trainings(random: np.random.Generator, deviations: np.ndarray, seeds: int = 2) -> np.ndarray:
    """Numbers (kinds, seeds, 16 cases) of trainings without any difference but chance; cases deviate by 1."""
    cases = random.standard_normal(16) + 0.5 * random.standard_normal((len(deviations), seeds, 16))
    return cases + deviations[:, None, None] * random.standard_normal((len(deviations), seeds, 1))


def verdicts(deviations: np.ndarray, effect: float = 0.0, rounds: int = 1000, same: bool = False) -> float:
    """How often two kinds of training are told apart."""
    random, found = np.random.default_rng(5), 0
    for _ in range(rounds):
        kinds = trainings(random, deviations)
        other = kinds[0] + 0.5 * random.standard_normal((2, 16)) if same else kinds[1]
        told = trained_difference(kinds[0] + effect, other, seed_spread(kinds), same_trainings=same)
        found += told.p < 0.05
        assert (told.p < 0.05) == (not told.low <= 0 <= told.high)
    return found / rounds


def test_two_seeds_that_differ_as_much_as_cases_seldom_tell_what_is_not_there() -> None:
    alike = np.ones(9)
    assert 0.01 < verdicts(alike) < 0.05
    assert verdicts(alike, same=True) < 0.05, "two scales of guidance of one training"
    assert verdicts(np.array([2.0, *alike[1:]])) < 0.12, "the report says this rate"
    assert verdicts(alike, effect=4) > 0.8, "an interval that is far too wide would never tell anything"


def test_trainings_count_as_well_as_cases() -> None:
    cases = np.random.default_rng(2).standard_normal(30)
    alike, apart = cases + np.zeros((2, 1)), cases + np.array([[0.0], [4.0]])
    found = {name: trained_mean(one, seed_spread([one] * 9)) for name, one in (("alike", alike), ("apart", apart))}
    width = {name: one.high - one.low for name, one in found.items()}
    assert found["apart"].value == pytest.approx(cases.mean() + 2)
    assert width["apart"] > 3 * width["alike"]
    # What these two show themselves counts even where others don't differ.
    own = trained_mean(apart, seed_spread([alike] * 9))
    assert own.high - own.low == pytest.approx(width["apart"])


def test_the_spread_is_that_of_the_seeds() -> None:
    random = np.random.default_rng(6)
    kinds = random.standard_normal((400, 1, 1)) * 9 + 2 * random.standard_normal((400, 2, 1)) + np.zeros(5)
    found = seed_spread(kinds)
    assert found.degrees == 400 and found.variance == pytest.approx(4, rel=0.15)
    assert seed_spread([np.ones((1, 5))]) == Spread(0, 0), "one training says nothing of another"


def test_missing_cases_are_left_out() -> None:
    values = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, 3.0]])
    assert trained_mean(values, Spread(0, 9)).value == 2
    assert trained_mean(np.full((2, 3), np.nan), Spread(0, 9)) is None
    assert trained_difference(values, np.full((2, 3), np.nan), Spread(0, 9)) is None
    assert trained_mean(np.array([[1.0, np.nan]]), Spread(0, 0)) is None, "nobody knows how sure one case is"


def test_a_training_without_a_number_is_left_out() -> None:
    """As if it had not been; and the one that is left says nothing of how trainings differ."""
    one = np.array([[1.0, 2.0, 1.5]])
    both = np.concatenate([np.full((1, 3), np.nan), one])
    for spread in (Spread(1, 5), Spread(0, 0)):
        assert trained_mean(both, spread) == trained_mean(one, spread)
        assert trained_difference(both, 0 * both, spread) == trained_difference(one, 0 * one, spread)


def test_a_difference_on_the_same_cases_is_surer_than_the_cases_are() -> None:
    random = np.random.default_rng(3)
    hard = 5 * random.standard_normal(20)
    a, b = (hard + shift + 0.1 * random.standard_normal((2, 20)) for shift in (1.0, 0.0))
    found = trained_difference(a, b, Spread(0.001, 9))
    assert 0.8 < found.low < found.value < found.high < 1.2 and found.p < 0.001
    alone = trained_mean(a, Spread(0.001, 9))
    assert alone.high - alone.low > 2
    nothing = trained_difference(a, a, Spread(0, 9), same_trainings=True)
    assert nothing.low == nothing.high == 0 and nothing.p == 1
    # What one side lacks is not compared.
    b[:, 0] = np.nan
    assert trained_difference(a, b, Spread(0.001, 9)).value == pytest.approx((a - b)[:, 1:].mean())


def test_many_claims_are_each_told_less_easily() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2, 0.9]) == pytest.approx([0.4, 0.9]) and holm([]) == []
    random = np.random.default_rng(7)
    wrong = [min(holm(list(random.random(20)))) < 0.05 for _ in range(1000)]
    assert np.mean(wrong) < 0.08, "one of twenty is below 0.05 in 64 % of cases"


def test_a_kernel_distance_of_few_faces_has_no_bias_and_tells_what_differs() -> None:
    random = np.random.default_rng(4)

    def faces(shift: float = 0.0) -> np.ndarray:
        return random.standard_normal((16, 1, 64)) + 0.3 * random.standard_normal((16, 6, 64)) + shift

    equal = [kernel_distance(faces(), faces()) for _ in range(200)]
    error = np.std([one.value for one in equal]) / 200**0.5
    assert abs(np.mean([one.value for one in equal])) < 3 * error
    assert all(one.low <= one.value <= one.high for one in equal)
    assert 0.9 < np.mean([one.low <= 0 <= one.high for one in equal]) < 1
    apart = [kernel_distance(faces(shift), faces()).value for shift in (0.3, 0.6)]
    assert 0 < apart[0] < apart[1] and kernel_distance(faces(0.6), faces()).low > 0
    same = faces()
    assert vars(kernel_distance(same, same)) == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-9)
    with pytest.raises(ValueError, match="three"):
        kernel_distance(same[:2], same[:2])
