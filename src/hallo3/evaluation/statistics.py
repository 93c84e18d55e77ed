"""How sure a number is that was measured on a few cases."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from .meters import Floats


@dataclass(frozen=True)
class Interval:
    """A number measured on cases.

    Attributes:
        value: What was measured.
        low, high: Ends of the 95 % interval.
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

    Both ends are the value itself for a single case.

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


@dataclass(frozen=True)
class Spread:
    """How much trainings of one kind differ in their mean over cases: the variance, and its degrees of freedom."""

    variance: float
    degrees: int


def seed_spread(kinds: Iterable[Floats]) -> Spread:
    """The variance between trainings that differ by their seed alone, pooled over kinds of training.

    A kind's own two trainings say little of it (one degree of freedom); nine kinds of two together say enough for an
    interval that can be used, if trainings of all kinds differ about as much (analysis of variance).

    Args:
        kinds: `(seeds, cases)` each, NaN where there was nothing to measure.
    """
    total, degrees = 0.0, 0
    for values in kinds:
        means = _means(values)
        if len(means) > 1:
            total += float(means.var(ddof=1)) * (len(means) - 1)
            degrees += len(means) - 1
    return Spread(total / degrees if degrees else 0.0, degrees)


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over trainings and cases, and the chance `p` of one as far from zero where there is nothing."""

    p: float


def trained_mean(values: Floats, spread: Spread) -> Estimate | None:
    """The mean over trainings and cases `(seeds, cases)`, NaN where there was nothing to measure, with its t-interval.

    Trainings are drawn at random as well as cases, so both variances count. Of the trainings' variance the larger is
    taken: that of these, or that of all kinds.

    Args:
        spread: Of `seed_spread`; without degrees of freedom (one training of each kind) the interval is over cases
            alone and says nothing of another training.

    Returns:
        None where fewer than two cases have a number.
    """
    return _estimate(values, max(_variance(_means(values)), spread.variance), spread.degrees)


def trained_difference(a: Floats, b: Floats, spread: Spread, *, same_trainings: bool = False) -> Estimate | None:
    """The mean of `a − b`, both `(seeds, cases)` on the same cases, as `trained_mean`.

    Args:
        same_trainings: Whether both come from the same trainings, as with two scales of guidance: then these show what
            differs between the trainings by their differences, and `spread` is an upper bound.
    """
    both = np.isfinite(a) & np.isfinite(b)
    a, b = np.where(both, a, np.nan), np.where(both, b, np.nan)
    parts = [_means(a - b)] if same_trainings else [_means(a), _means(b)]
    return _estimate(a - b, max(sum(map(_variance, parts)), 2 * spread.variance), spread.degrees)


def _estimate(values: Floats, between_seeds: float, degrees: int) -> Estimate | None:
    """From values or differences `(seeds, cases)` and the variance that one training brings to them."""
    seeds, cases = _means(values), _means(values.T)
    if len(cases) < 2:
        return None
    value = float(seeds.mean())
    error = float(np.sqrt(between_seeds / len(seeds) + cases.var(ddof=1) / len(cases)))
    known = min(degrees, len(cases) - 1) if degrees else len(cases) - 1
    if error < 1e-12:
        return Estimate(value, value, value, 1.0 if abs(value) < 1e-12 else 0.0)
    reach = student_reach(known) * error
    return Estimate(value, value - reach, value + reach, float(2 * student.sf(abs(value) / error, known)))


def student_reach(degrees: int) -> float:
    """How many standard errors a 95 % interval reaches to either side, with so many degrees of freedom."""
    return float(student.ppf(0.975, degrees))


def _variance(means: Floats) -> float:
    """Between trainings; 0 where fewer than two have a number, which say nothing of it."""
    return float(means.var(ddof=1)) if len(means) > 1 else 0.0


def _means(values: Floats) -> Floats:
    """Mean of each row's numbers; rows without any are left out."""
    rows = values[np.isfinite(values).any(axis=1)]
    return np.nanmean(rows, axis=1) if len(rows) else np.empty(0)


def holm(chances: Sequence[float]) -> list[float]:
    """Chances p of several claims, each raised so that one false claim among all is as rare as p says (Holm 1979)."""
    order = np.argsort(chances)
    raised, least = np.empty(len(order)), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(order) - place) * chances[index]))
        raised[index] = least
    return raised.tolist()


def kernel_distance(a: Floats, b: Floats) -> Interval:
    """Squared distance of two sets of features `(cases, n, c)`, `(cases, m, c)` of the same cases, ×1000.

    As KID (arXiv 1801.01401): maximum mean discrepancy with the kernel (x·y/c + 1)³. It has no bias however few the
    features are, where a Fréchet distance would fit more numbers than it has faces: two equal sets have 0 on average,
    single ones a little below or above. Features of one case are alike, so only different cases are compared
    (U-statistic over cases), and the 95 % interval is the jackknife's over cases.

    Raises:
        ValueError: for fewer than three cases.
    """
    count = len(a)
    if count < 3:
        raise ValueError(f"a distance over cases needs three, not {count}")
    gap = _kernel_means(a, a) + _kernel_means(b, b) - _kernel_means(a, b) - _kernel_means(a, b).T
    np.fill_diagonal(gap, 0)
    total, rows = gap.sum(), gap.sum(1)
    value = float(total / (count * (count - 1)))
    without = (total - 2 * rows) / ((count - 1) * (count - 2))
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
    reach = student_reach(count - 1) * error
    return Interval(1000 * value, 1000 * (value - reach), 1000 * (value + reach))


def _kernel_means(a: Floats, b: Floats) -> Floats:
    """Mean kernel of each case's features with each other's: (cases, cases)."""
    flat = [np.asarray(one, np.float64).reshape(-1, one.shape[-1]) for one in (a, b)]
    kernel = (flat[0] @ flat[1].T / flat[0].shape[1] + 1) ** 3
    return kernel.reshape(len(a), a.shape[1], len(b), b.shape[1]).mean(axis=(1, 3))
