"""How sure a number is that was measured on a few cases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

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
