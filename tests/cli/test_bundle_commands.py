"""The commands about bundles, as a person runs them: words in, lines and an exit code out."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hallo3.cli import main
from hub_server import serving

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
DENOISER = ["--denoiser", str(GOLDEN / "dit" / "hallo3")]
VAE = ["--vae", str(GOLDEN / "vae" / "vae" / "3d-vae.pt")]
GRID = ["--height", "64", "--width", "96", "--text-length", "12"]


def command(*words, **environment):
    """`hallo3 WORDS` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hallo3", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_convert_then_verify_as_processes(tmp_path):
    out = tmp_path / "b"
    made = command("convert", *DENOISER, *GRID, "--out", out, "--dtype", "fp32", "--max-shard-size", "1MB")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines() == [
        f"{out}: transformer, reference_network, scheduler (0.00 GB)",
        "still missing: vae, text_encoder, tokenizer, speech_encoder, feature_extractor, face_encoder",
    ]
    good = command("verify", out, GOLDEN / "dit" / "transformer_io.safetensors")
    assert (good.returncode, good.stderr) == (0, "")
    assert "6 of 6 agree; 0 not checked" in good.stdout and "output" in good.stdout


def test_verify_says_what_differs_and_what_it_could_not_check(tmp_path, capsys):
    out = tmp_path / "b"
    assert main(["convert", *DENOISER, *GRID, "--out", str(out), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for file in ("dit/transformer_io.safetensors", "vae/vae_io.safetensors"):
        shutil.copy(GOLDEN / file, recordings)
    assert main(["verify", str(out), str(recordings)]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and "stored in bfloat16" in shown
    assert "not checked: vae_io: decoded_49, latent_mean_1" in shown and "the bundle has no vae" in shown
    assert main(["verify", str(out), str(recordings), "--tolerance", "0.05"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert main(["verify", str(out), str(recordings / "vae_io.safetensors")]) == 1  # nothing checked is no success


def test_convert_lists_what_does_not_fit(tmp_path, capsys):
    state = torch.load(GOLDEN / "vae" / "vae" / "3d-vae.pt", weights_only=True)["state_dict"]
    lost = [name for name in state if "norm_out" in name]
    torch.save({"state_dict": {n: x for n, x in state.items() if n not in lost}}, tmp_path / "vae.pt")
    assert main(["convert", "--vae", str(tmp_path / "vae.pt"), "--out", str(tmp_path / "b")]) == 2
    *listed, last = capsys.readouterr().err.splitlines()
    assert listed == [f"vae: missing {name} {list(state[name].shape)}" for name in lost]
    assert last.startswith(f"hallo3: error: {len(lost)} tensors do not fit") and "nothing was written" in last
    assert not (tmp_path / "b").exists()


def test_a_partial_bundle_is_completed_part_by_part(tmp_path, capsys):
    out = tmp_path / "home" / "bundles" / "mine"
    assert main(["convert", *VAE, "--out", str(out)]) == 0
    assert main(["convert", *DENOISER, *GRID, "--out", str(out)]) == 0
    assert main(["convert", *VAE, "--out", str(out)]) == 2
    assert "has vae already, and nothing is overwritten" in capsys.readouterr().err
    assert main(["bundles"]) == 0
    shown = capsys.readouterr().out
    assert "mine" in shown and str(out) in shown and "lacks text_encoder, tokenizer" in shown
    assert main(["bundles", "--json"]) == 0
    found = {entry["name"]: entry for entry in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["mine"]["missing"][0] == "text_encoder" and found["mine"]["kind"] == "registry"
    assert found["mine"]["size"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    (out / "vae" / "config.json").write_text("{")
    assert main(["bundles", "--json"]) == 0
    assert "vae/config.json: is not valid JSON" in capsys.readouterr().out


def test_a_whole_copy_of_the_repository_is_converted_at_once(tmp_path, capsys):
    shutil.copytree(GOLDEN / "dit" / "hallo3", tmp_path / "pretrained" / "hallo3")
    assert (
        main(["convert", "--published", str(tmp_path / "pretrained"), *VAE, *GRID, "--out", str(tmp_path / "b")]) == 0
    )
    assert f"{tmp_path / 'b'}: transformer, reference_network, scheduler, vae" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["convert", "--published", str(tmp_path / "empty"), "--out", str(tmp_path / "c")]) == 2
    assert "holds none of the published files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "--out", "b"], "nothing to convert"),
        (["convert", *VAE], "--out"),
        (["convert", *VAE, "--out", "b", "--dtype", "int3"], "--dtype"),
        (["convert", *VAE, "--out", "b", "--max-shard-size", "big"], "not a size"),
        (["convert", "--vae", "nowhere.pt", "--out", "b"], "nowhere.pt"),
        (["convert", *DENOISER, "--height", "-3", "--out", "b"], "--height"),
        (["verify", "nowhere", str(GOLDEN)], "nowhere: no such bundle"),
        (["verify", "nowhere", "no-recording"], "no-recording: no such file or folder"),
        (["download", "nothing"], "nothing: not known"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_without_a_network_download_is_one_line(tmp_path):
    shown = command("download", "hallo3", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert shown.returncode == 2 and shown.stdout == ""
    assert len(shown.stderr.splitlines()) == 1
    assert "http://127.0.0.1:9 can't be reached" in shown.stderr and "check the network" in shown.stderr


def test_download_as_a_process_stopped_and_taken_up_again(tmp_path):
    shutil.copytree(GOLDEN / "dit" / "hallo3", tmp_path / "hub" / "hallo3")
    weights = "hallo3/1/mp_rank_00_model_states.pt"
    with serving({"someone/weights": tmp_path / "hub"}) as hub:
        hub.cuts[weights] = [2_500_000] + [0] * 20
        place = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        broken = command("download", "someone/weights", "--dtype", "keep", **place)
        assert broken.returncode == 2 and len(broken.stderr.splitlines()) == 1
        assert not (tmp_path / "home" / "bundles").exists()
        hub.cuts.clear()
        hub.requests.clear()
        done = command("download", "someone/weights", "--dtype", "keep", **place)
        assert (done.returncode, done.stderr) == (0, "")
        assert hub.ranges_of(weights) == ["bytes=2500000-"]
        folder = tmp_path / "home" / "bundles" / "weights"
        assert done.stdout.splitlines() == [
            f"{folder}: lacks vae, text_encoder, tokenizer, speech_encoder, feature_extractor, face_encoder",
            "use it with --bundle weights",
        ]
    assert main(["verify", "weights", str(GOLDEN / "dit" / "transformer_io.safetensors")]) == 0
