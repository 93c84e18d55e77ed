"""One clip on two processes: the sequence is shared out, the result is that of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from network_cases import assert_agree, tiny_denoiser, tiny_inputs

GRID = {"frames": 3, "rows": 2, "columns": 5, "words": 4}


@torch.no_grad()
def predict(rank: int, folder: str, variant: dict[str, str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    from diffusers import ContextParallelConfig

    denoiser = tiny_denoiser(**variant)
    inputs, given = tiny_inputs(denoiser.config, **GRID)
    given = {name: value for name, value in given.items() if not variant or name != "reference"}
    torch.accelerator.device_count = lambda: 2  # diffusers divides by it, and a CPU has none
    denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    tokens = []
    denoiser.transformer_blocks[1].mlp.register_forward_hook(lambda _, args, __: tokens.append(args[0].shape[1:-1]))
    exact = denoiser(*inputs, **given)
    prepared = denoiser(*inputs, conditions=denoiser.conditions(**given))
    torch.save((exact, prepared, tokens), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("variant", [{}, {"speech_conditioning": "norm", "identity_conditioning": "face_norm"}])
@torch.no_grad()
def test_two_processes_equal_one(tmp_path, variant):
    mp.spawn(predict, (str(tmp_path), variant), nprocs=2)
    denoiser = tiny_denoiser(**variant)
    inputs, given = tiny_inputs(denoiser.config, **GRID)
    given = {name: value for name, value in given.items() if not variant or name != "reference"}
    expected = denoiser(*inputs, **given)
    for rank in range(2):
        exact, prepared, tokens = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_agree(exact, expected)
        assert_agree(prepared, expected)
        # Each has half the tokens of every latent frame, and half the text.
        assert tokens[:2] == [torch.Size([3, 5]), torch.Size([2])]


def test_speech_in_the_joint_attention_is_refused():
    from diffusers import ContextParallelConfig

    denoiser = tiny_denoiser(speech_conditioning="joint")
    with pytest.raises(ValueError, match="speech_conditioning is 'joint'"):
        denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
