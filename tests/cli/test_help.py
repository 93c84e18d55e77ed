"""Help is there at once: what takes seconds to import is imported where it is used."""

import subprocess
import sys

import pytest

HEAVY = """
    accelerate av c2pa cv2 diffusers fastapi gradio httpx huggingface_hub insightface matplotlib mediapipe numba numpy
    onnxruntime peft PIL safetensors scipy skimage starlette tokenizers torch torchao torchvision transformers uvicorn
"""


@pytest.mark.parametrize("words", [["--help"], ["animate", "--help"], ["plan", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from hallo3.cli.app import main; code = main(sys.argv[1:]); "
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout and "typer" in done.stderr.split()
    assert sorted(set(HEAVY.split()) & set(done.stderr.split())) == []
