"""Noise schedule and solver as plain functions (paper 3.1 and the published sampler).

A noise level is given by a = √ᾱ: a noisy sample is `x = a·x0 + σ·noise` with σ = √(1 − a²). The network predicts
`v = a·noise − σ·x0`, so `x0 = a·x − σ·v`. Tables are float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def signal_table(num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """√ᾱ of every training timestep, `(num_train_timesteps,)`, before any rescaling; betas are scaled-linear."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).sqrt()


def zero_terminal_snr(signal: Tensor) -> Tensor:
    """Shift and scale √ᾱ, ordered by rising noise, so that the last is 0 and the first stays (arXiv 2305.08891)."""
    if len(signal) == 1:
        return torch.zeros_like(signal)
    return (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))


def inference_timesteps(steps: int, num_train_timesteps: int = 1000) -> list[int]:
    """The timesteps of a run, descending: `floor(999 − k·999/steps)` for k = 0…steps−1."""
    last = num_train_timesteps - 1
    return [last - -(-k * last // steps) for k in range(steps)]


def inference_signal(steps: int, table: Tensor) -> Tensor:
    """√ᾱ at the timesteps of a run, rising from 0, and a 1 at the end: `(steps + 1,)`.

    The published code rescales to zero terminal SNR on the timesteps in use, not on the whole `table`, which is the
    one before rescaling.
    """
    timesteps = inference_timesteps(steps, len(table))
    rescaled = zero_terminal_snr(table[timesteps].flip(0)).flip(0)
    return torch.cat([rescaled, torch.ones(1, dtype=table.dtype)])


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """Of each value the nearest entry of the table."""
    return table[(values[:, None] - table).abs().argmin(1)]


def spread(signal: float | Tensor) -> float | Tensor:
    """σ = √(1 − a²)."""
    return (1 - signal**2) ** 0.5


def add_noise(x0: Tensor, noise: Tensor, signal: float | Tensor) -> Tensor:
    """`a·x0 + σ·noise`."""
    return signal * x0 + spread(signal) * noise


def velocity(x0: Tensor, noise: Tensor, signal: float | Tensor) -> Tensor:
    """The network's target, `a·noise − σ·x0`."""
    return signal * noise - spread(signal) * x0


def x0_from_velocity(v: Tensor, x: Tensor, signal: float | Tensor) -> Tensor:
    """`a·x − σ·v`."""
    return signal * x - spread(signal) * v


class SolverStep(NamedTuple):
    """Weights of one step: `x_next = sample·x + x0·x0_now + x0_old·x0_before + noise·z`, z standard normal."""

    sample: float
    x0: float
    x0_old: float
    noise: float


def solver_step(before: float | None, now: float, after: float) -> SolverStep:
    """A step of the DPM-Solver++ 2M SDE between two levels of √ᾱ (arXiv 2211.01095).

    With h the rise of the log ratio λ = log(a/σ) in this step and h' in the one before it, the solver takes
    `x0 + (h / 2h')·(x0 − x0_before)` for x0. λ starts at −∞, so h' of the second step is infinite and that step is of
    first order, like the first.

    Args:
        before: √ᾱ of the step before, `None` at the first.
        now, after: √ᾱ at the start and the end of this step, `now` < `after`. The last step, to 1, returns x0.
    """
    if after >= 1:
        return SolverStep(0.0, 1.0, 0.0, 0.0)
    now_level, after_level = torch.tensor([now, after], dtype=torch.float64)
    now_spread, after_spread = spread(now_level), spread(after_level)
    decay = now_level / now_spread * after_spread / after_level  # exp(−h)
    to_x0 = after_level * (1 - decay**2)
    ahead = 0.0
    if before is not None and before > 0:
        before_level = torch.tensor(before, dtype=torch.float64)
        rise = torch.log(now_level / now_spread) - torch.log(before_level / spread(before_level))
        ahead = float(-decay.log() / (2 * rise))
    return SolverStep(
        sample=float(after_spread / now_spread * decay),
        x0=float(to_x0 * (1 + ahead)),
        x0_old=float(-to_x0 * ahead),
        noise=float(after_spread * (1 - decay**2).sqrt()),
    )
