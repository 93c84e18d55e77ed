"""How sure a number is that was measured on a few cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meters import Floats


@dataclass(frozen=True)
class Interval:
    """A number measured on cases.

    Attributes:
        value: What was measured.
        low, high: Ends of the 95 % interval by bootstrap; both are `value` for a single case.
    """

    value: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float] | Floats,
    statistic: Callable[..., Floats] = np.median,
    rounds: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of cases that don't depend on each other, with its percentile interval (Efron 1979).

    Args:
        values: `(n,)`, one a case.
        statistic: Takes an array and an `axis`.

    Raises:
        ValueError: when there is no case, or one is not a number.
    """
    cases = np.asarray(values, np.float64)
    if not len(cases) or not np.isfinite(cases).all():
        raise ValueError(f"can't say how sure {list(values)} are: give at least one case, and numbers only")
    drawn = np.random.default_rng(seed).integers(0, len(cases), (rounds, len(cases)))
    low, high = np.percentile(statistic(cases[drawn], axis=1), [2.5, 97.5])
    return Interval(float(statistic(cases, axis=0)), float(low), float(high))


def crossed_bootstrap(values: Floats, rounds: int = 2000, seed: int = 0) -> Interval:
    """The mean over trainings and cases `(seeds, cases)`, NaN where nothing was to measure; both are drawn again.

    Two trainings of one kind differ like two cases do; an interval over cases alone would not see it.

    Raises:
        ValueError: when all are NaN.
    """
    means = _crossed_means(values, _drawn_cases(values, rounds, seed), np.random.default_rng([seed, 1]))
    return _interval(float(np.nanmean(values)), means)


def crossed_difference(
    a: Floats, b: Floats, *, same_seeds: bool = False, rounds: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `a − b`, both `(seeds, cases)` on the same cases, with its interval.

    Args:
        same_seeds: Whether both come from the same trainings, as with two scales of guidance.
    """
    both = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(both, a, np.nan), np.where(both, b, np.nan)
    if same_seeds:
        return crossed_bootstrap(a - b, rounds, seed)
    cases = _drawn_cases(a, rounds, seed)
    means = [_crossed_means(v, cases, np.random.default_rng([seed, number])) for number, v in enumerate((a, b), 1)]
    return _interval(float(np.nanmean(a) - np.nanmean(b)), means[0] - means[1])


def _drawn_cases(values: Floats, rounds: int, seed: int) -> NDArray[np.int64]:
    if not np.isfinite(values).any():
        raise ValueError("can't say how sure nothing is: give at least one number")
    return np.random.default_rng(seed).integers(0, values.shape[1], (rounds, values.shape[1]))


def _crossed_means(values: Floats, cases: NDArray[np.int64], random: np.random.Generator) -> Floats:
    """Means `(rounds,)`, NaN where all that was drawn is."""
    count = len(values)
    seeds = random.integers(0, count, (len(cases), count))
    drawn = values[seeds[:, :, None], cases[:, None, :]].reshape(len(cases), -1)
    there = np.isfinite(drawn)
    with np.errstate(invalid="ignore"):
        return np.where(there, drawn, 0).sum(1) / there.sum(1)


def _interval(value: float, means: Floats) -> Interval:
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def frechet_distance(a: Floats, b: Floats) -> float:
    """Fréchet distance of two sets of features `(n, c)`, `(m, c)`, each taken as a normal distribution.

    As FID (arXiv 1706.08500) on whatever features are given. The root of the product is taken by eigenvalues, which are
    real and not negative for two covariances but for rounding.
    """
    means, covariances = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots.sum())
