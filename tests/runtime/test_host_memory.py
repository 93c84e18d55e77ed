"""Peak host memory of a whole animation on a CPU, in a process of its own: weights are mapped, not copied."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_little_beside_the_weights_and_none_for_the_length() -> None:
    words = ["--json", "--strategy", "staged", "--seconds", "2", "--seconds", "10"]
    said = subprocess.run([sys.executable, str(BENCHMARK), *words], check=True, capture_output=True, text=True).stdout
    short, long = json.loads(said)
    assert short["weights"] > 3e8
    for row in (short, long):
        assert 0.5 * row["weights"] < row["peak"] <= 1.2 * row["weights"]
        # Estimates count the denoiser from the start, as if its numbers were converted; mapped, it comes with its use.
        assert row["peak"] < row["estimate"] < 1.75 * row["weights"]
    # Two runs of one length differ by 3 % of the weights.
    assert long["peak"] - short["peak"] < 0.1 * short["weights"]
