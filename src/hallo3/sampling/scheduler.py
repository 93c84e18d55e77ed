"""The published schedule and solver as a diffusers scheduler."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..errors import UserError
from . import schedule


@dataclass
class Hallo3DPMSchedulerOutput(BaseOutput):
    """The next sample, and the x0 estimate that the next step takes as `x0_old`."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Hallo3DPMScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """DPM-Solver++ 2M SDE on the published schedule, and the training side of the same schedule.

    1000 timesteps, scaled-linear betas, v-prediction, zero terminal SNR. Sampling rescales the schedule on the
    timesteps in use; the x0 estimate takes √ᾱ from the nearest entry of the training table, the solver its own.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012):
        table = schedule.signal_table(num_train_timesteps, beta_start, beta_end)
        self.training_signal = schedule.zero_terminal_snr(table)
        """√ᾱ of the training timesteps, float64; 0 at the last."""
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        """Timesteps of the run, descending."""
        self.signal: list[float] = []
        """√ᾱ of the run, rising, with a 1 at the end."""
        self._x0_signal: list[float] = []
        self._steps: list[schedule.SolverStep] = []

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Prepare a run.

        Raises:
            UserError: not between 1 and the number of training timesteps.
        """
        most = len(self.training_signal)
        if not 1 <= num_inference_steps <= most:
            raise UserError(f"{num_inference_steps} sampling steps: choose between 1 and {most} (published: 50)")
        config = self.config
        table = schedule.signal_table(most, config["beta_start"], config["beta_end"])
        self.timesteps = torch.tensor(schedule.inference_timesteps(num_inference_steps, most), device=device)
        signal = schedule.inference_signal(num_inference_steps, table)
        self.signal = signal.tolist()
        self._x0_signal = schedule.nearest(signal[:-1], self.training_signal).tolist()
        before = [None, *self.signal[:-2]]
        self._steps = [
            schedule.solver_step(*levels) for levels in zip(before, self.signal[:-1], self.signal[1:], strict=True)
        ]

    def scale_model_input(self, sample: Tensor, timestep: int | None = None) -> Tensor:
        """The network takes the sample as it is."""
        return sample

    def x0(self, prediction: Tensor, index: int, sample: Tensor) -> Tensor:
        """x0 estimate from the v-prediction of step `index`."""
        return schedule.x0_from_velocity(prediction, sample, self._x0_signal[index])

    def step(
        self,
        prediction: Tensor,
        index: int,
        sample: Tensor,
        x0_old: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Hallo3DPMSchedulerOutput:
        """One solver step, from `timesteps[index]` to the next; the last gives x0 itself.

        Args:
            prediction: v of the network after guidance, the shape of `sample`. Guiding v or x0 is the same, since the
                weights of the branches add up to 1.
            index: 0…steps−1.
            x0_old: `pred_original_sample` of the step before; `None` at the first.
            noise: standard normal, as `sample`; drawn with `generator` where missing. The last step takes none.
        """
        weights, x0 = self._steps[index], self.x0(prediction, index, sample)
        if index == len(self._steps) - 1:
            return Hallo3DPMSchedulerOutput(x0, x0)
        if noise is None:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        following = weights.sample * sample + weights.x0 * x0 + weights.noise * noise
        if weights.x0_old:
            if x0_old is None:
                raise ValueError(f"step {index} needs the x0 estimate of the step before (x0_old)")
            following = following + weights.x0_old * x0_old
        return Hallo3DPMSchedulerOutput(following, x0)

    def __len__(self) -> int:
        return len(self.training_signal)

    def _signal_at(self, timesteps: Tensor, like: Tensor) -> Tensor:
        signal = self.training_signal.to(timesteps.device)[timesteps]
        return signal.to(like.device, torch.float32).reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`a·x0 + σ·noise` at training timesteps `(B,)`; at the last it is noise alone."""
        return schedule.add_noise(original_samples, noise, self._signal_at(timesteps, original_samples))

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target `v = a·noise − σ·x0` at training timesteps `(B,)`."""
        return schedule.velocity(sample, noise, self._signal_at(timesteps, sample))

    def x0_from_velocity(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """`x0 = a·x − σ·v` at training timesteps `(B,)`."""
        return schedule.x0_from_velocity(prediction, noisy, self._signal_at(timesteps, noisy))
