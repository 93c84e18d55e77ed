"""The schedule equals the published one; the solver and the training side are what their equations say."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hallo3.errors import UserError
from hallo3.sampling import Hallo3DPMScheduler
from hallo3.sampling.schedule import (
    inference_timesteps,
    nearest,
    signal_table,
    solver_step,
    spread,
    x0_from_velocity,
    zero_terminal_snr,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dit" / "sampler_io.safetensors"


@pytest.fixture
def scheduler():
    return Hallo3DPMScheduler()


@pytest.mark.parametrize("steps", [6, 50])
def test_equals_the_published_schedule(scheduler, steps):
    recorded = load_file(GOLDEN)
    scheduler.set_timesteps(steps)
    assert [-1, *scheduler.timesteps.flip(0).tolist()] == recorded[f"timesteps_{steps}"].tolist()
    signal = torch.tensor(scheduler.signal)
    torch.testing.assert_close(signal, recorded[f"sqrt_alphas_cumprod_{steps}"], rtol=0, atol=2e-7)


@pytest.mark.parametrize("steps", [1, 2, 7, 333, 999, 1000])
def test_any_number_of_steps(scheduler, steps):
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps == inference_timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert timesteps[-1] >= 0
    assert all(now > after for now, after in pairwise(timesteps))
    assert scheduler.signal[0] == 0
    assert scheduler.signal[-1] == 1
    assert all(now < after for now, after in pairwise(scheduler.signal))


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_impossible_numbers_of_steps_are_told(scheduler, steps):
    with pytest.raises(UserError, match="between 1 and 1000"):
        scheduler.set_timesteps(steps)


def test_rescaling_keeps_the_first_and_ends_at_zero():
    table = signal_table()
    rescaled = zero_terminal_snr(table)
    assert table[-1] > 0.06
    assert rescaled[-1] == 0
    assert rescaled[0] == table[0] == pytest.approx((1 - 0.00085) ** 0.5)
    assert rescaled.diff().max() < 0


def test_nearest():
    table = torch.tensor([0.9, 0.5, 0.0])
    assert nearest(torch.tensor([0.71, 0.69, 0.1, 2.0]), table).tolist() == pytest.approx([0.9, 0.5, 0.0, 0.9])


@pytest.mark.parametrize("before", [None, 0.0, 0.2])
def test_a_step_keeps_the_noise_level(before):
    """With the true x0, a step takes `a·x0 + σ·noise` to the next level: a·x0 in the mean, σ² in the variance."""
    now, after = 0.4, 0.7
    weights = solver_step(before, now, after)
    mean = weights.sample * now + weights.x0 + weights.x0_old
    variance = (weights.sample * spread(now)) ** 2 + weights.noise**2
    assert mean == pytest.approx(after)
    assert variance == pytest.approx(spread(after) ** 2)
    assert (weights.x0_old == 0) == (not before)


def test_second_order_follows_a_line_in_log_snr():
    """An x0 estimate that is linear in λ is carried on to the middle of the step."""
    before, now, after = 0.2, 0.4, 0.7
    rise = [torch.tensor(a / spread(a)).log().item() for a in (before, now, after)]
    first, second = solver_step(None, now, after), solver_step(before, now, after)
    x0_old, x0 = 1.0, 1.5
    middle = x0 + (x0 - x0_old) / (rise[1] - rise[0]) * (rise[2] - rise[1]) / 2
    assert second.x0 * x0 + second.x0_old * x0_old == pytest.approx(first.x0 * middle)


def test_a_perfect_network_gets_the_sample_back(scheduler):
    """Whatever the noise, steps with the true velocity end at x0."""
    generator = torch.Generator().manual_seed(0)
    x0, sample = torch.randn(2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    scheduler.set_timesteps(8)
    old = None
    for i in range(8):
        signal = scheduler._x0_signal[i]
        v = (signal * sample - x0) / spread(signal)
        out = scheduler.step(v, i, sample, old, generator=generator)
        torch.testing.assert_close(out.pred_original_sample, x0, atol=1e-4, rtol=0)
        sample, old = out.prev_sample, out.pred_original_sample
    assert torch.equal(sample, out.pred_original_sample)


def test_noise_is_given_or_drawn(scheduler):
    scheduler.set_timesteps(4)
    v, sample = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    drawn = scheduler.step(v, 0, sample, generator=torch.Generator().manual_seed(3)).prev_sample
    noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(scheduler.step(v, 0, sample, noise=noise).prev_sample, drawn)
    other = scheduler.step(v, 0, sample, generator=torch.Generator().manual_seed(4)).prev_sample
    assert not torch.equal(other, drawn)
    state = torch.Generator().manual_seed(3)
    before = state.get_state()
    scheduler.step(v, 3, sample, sample, generator=state)
    assert torch.equal(state.get_state(), before)  # the last step draws nothing
    with pytest.raises(ValueError, match="x0_old"):
        scheduler.step(v, 2, sample, noise=noise)


def test_training_targets(scheduler):
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(5, 2, 3, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 1, 500, 998, 999])
    noisy, v = scheduler.add_noise(x0, noise, timesteps), scheduler.get_velocity(x0, noise, timesteps)
    torch.testing.assert_close(scheduler.x0_from_velocity(v, noisy, timesteps), x0)
    assert torch.equal(noisy[-1], noise[-1])  # zero terminal SNR: noise alone,
    assert torch.equal(v[-1], -x0[-1])  # and the network says what it has drawn
    assert (noisy[0] - x0[0]).abs().max() < 0.1


def test_weighted_x0_loss_is_the_v_loss(scheduler):
    """The published loss is that of x0 weighted by 1/(1−ᾱ); as x0_pred − x0 = −σ·(v_pred − v), ours, of v, is equal.

    At the last timestep the sample is noise alone, v = −x0, and both are the error of x0 itself.
    """
    generator = torch.Generator().manual_seed(2)
    x0, noise, error = (torch.randn(1000, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    timesteps = torch.arange(1000)
    noisy, v = scheduler.add_noise(x0, noise, timesteps), scheduler.get_velocity(x0, noise, timesteps)
    x0_error = scheduler.x0_from_velocity(v + error, noisy, timesteps) - x0
    weight = 1 / (1 - scheduler.training_signal**2).float()
    assert weight.isfinite().all()
    assert weight[999] == 1
    torch.testing.assert_close(weight[:, None] * x0_error.square(), error.square(), rtol=1e-3, atol=1e-6)


def test_saving_and_loading(tmp_path):
    Hallo3DPMScheduler(beta_end=0.01).save_pretrained(tmp_path)
    loaded = Hallo3DPMScheduler.from_pretrained(tmp_path)
    assert loaded.config.beta_end == 0.01
    assert torch.equal(loaded.training_signal, Hallo3DPMScheduler(beta_end=0.01).training_signal)
    assert len(Hallo3DPMScheduler.from_config(loaded.config)) == 1000


def test_velocity_without_noise_is_the_sample_itself():
    assert torch.equal(x0_from_velocity(torch.ones(2), torch.full((2,), 3.0), 1.0), torch.full((2,), 3.0))
