"""`hallo3 doctor` finds what is there and what is broken, and says what to do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def doctor(*words: str, **environment: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "hallo3", "doctor", *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert "Traceback" not in run.stderr
    return run.returncode, run.stdout


def findings(output: str) -> dict[str, Any]:
    return {finding["topic"]: finding for finding in json.loads(output)["findings"]}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "bundles").mkdir(parents=True)
    return tmp_path / "home"


def test_a_machine_that_runs_the_tests_is_well(home: Path) -> None:
    code, output = doctor("--json", HALLO3_HOME=str(home))
    found = findings(output)
    assert code == 0 and not [topic for topic, one in found.items() if one["state"] == "problem"]
    assert "H.264" in found["video"]["found"] and found["model embedded"]["state"] == "fine"
    assert f"{os.sep}home" in found["room for models"]["found"]
    assert "hallo3 " in json.loads(output)["next"]
    code, table = doctor(HALLO3_HOME=str(home))
    assert code == 0 and "next: " in table and "PROBLEM" not in table


def test_what_is_broken_or_lacking_is_named_with_its_remedy(home: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, home / "bundles" / "half")
    weights = next((home / "bundles" / "half" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-10])
    empty = tmp_path / "programs"
    empty.mkdir()
    environment = {"HALLO3_HOME": str(home), "PATH": str(empty), "HALLO3_I_HAVE_THE_RIGHTS": ""}
    code, output = doctor("--json", **environment, XDG_CONFIG_HOME=str(tmp_path / "new"))
    found = findings(output)
    assert code == 1 and found["model half"]["state"] == "problem"
    assert weights.name in found["model half"]["found"] and "half" in json.loads(output)["next"]
    assert found["synthesisers"]["state"] == found["rights"]["state"] == "note"
    assert "espeak-ng" in found["synthesisers"]["found"] and "--i-have-the-rights" in found["rights"]["remedy"]
