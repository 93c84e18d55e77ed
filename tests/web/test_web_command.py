"""`hallo3 web` as a process: a run with the embedded bundle by keyboard alone, Ctrl-C, and what it refuses."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from web_help import give, patient_page, press_until

from hallo3.cli import main
from hallo3.media.credentials import LOCAL_FILE, read_credentials
from hallo3.media.personal import settings_folder
from hallo3.media.provenance import read_provenance
from hallo3.media.video import probe
from hallo3.serving.listening import listen
from hallo3.web.samples import find_samples
from waiting import PATIENCE

Started = tuple[subprocess.Popen[str], str]


def hear_all_signals() -> None:
    """A test run in the background, or under nohup, ignores these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start_command(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Gives a function that starts the command on a free port and gives the process and the address."""
    pytest.importorskip("gradio", reason="needs the extra `web`")
    processes: list[subprocess.Popen[str]] = []
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()

    def run(*options: str) -> Started:
        words = [sys.executable, "-m", "hallo3", "web", "--port", "0", *options]
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path / "here",
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
            preexec_fn=hear_all_signals,
        )
        processes.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.]+:\d+", line)
        assert found, line + process.stderr.read()
        return process, found[0].replace("0.0.0.0", "127.0.0.1") + "/"

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_embedded_bundle_by_keyboard(
    start_command: Callable[..., Started], visit: Callable[..., Any], tmp_path: Path
) -> None:
    """What a newcomer does first, with samples; the result carries every mark; Ctrl-C leaves nothing behind."""
    process, url = start_command()
    page = visit(url)
    press_until(page, "#portraits", "Enter")
    page.locator("#preview img").wait_for()
    assert "In the frame: the face" in page.locator("#preview figcaption").inner_text()
    press_until(page, "#speeches", "Enter")
    page.locator("#estimate", has_text="1.1 s of speech (1 clip of 1 step)").wait_for()
    assert "mountains" in page.locator("#prompt textarea").input_value()
    press_until(page, "#rights", "Space")
    press_until(page, "#animate", "Enter")
    page.locator("#progress progress").wait_for()
    page.locator("#stage .result video").wait_for()
    with page.expect_download() as download:
        press_until(page, "#stage a", "Enter")
    download.value.save_as(tmp_path / "got.mp4")
    info, signed = probe(tmp_path / "got.mp4"), read_credentials(tmp_path / "got.mp4")
    record = read_provenance(tmp_path / "got.mp4")
    assert (info.width, info.height, info.frames) == (192, 128, 29)
    assert signed is not None and record is not None and record["watermark"] and record["bundle"] == "embedded"
    assert list((tmp_path / "temporary").glob("hallo3-web-*"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in said and said.count("\n") == 2
    assert "without a token" in said and "Ctrl-C" in said
    assert not list((tmp_path / "temporary").iterdir()) and not list((tmp_path / "here").iterdir())


def frame_at(page: Any, x: int, y: int, w: int, h: int) -> bool:
    """Whether the preview has the bright frame of the chosen face there; a place on the canvas of 192 pixels."""
    data = str(page.locator("#preview img").get_attribute("src")).partition(",")[2]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
    scale = picture.shape[1] // 192
    row = picture[y * scale + 1, (x + 4) * scale : (x + w - 4) * scale]
    return bool((np.abs(row - (255, 176, 0)).mean() < 40) and h > 0)


@pytest.mark.slow
def test_which_of_several_faces(
    start_command: Callable[..., Started], visit: Callable[..., Any], tmp_path: Path
) -> None:
    """They are numbered in the preview; the fields choose another by its number, or by its place."""
    portraits = [Image.open(one.portrait).convert("RGB").resize((384, 256)) for one in find_samples().people[:2]]
    both = Image.new("RGB", (768, 256))
    for place, portrait in enumerate(portraits):
        both.paste(portrait, (384 * place, 0))
    both.save(tmp_path / "both.png")
    _, url = start_command()
    page = visit(url)
    page.locator("#portrait input[type=file]").set_input_files(tmp_path / "both.png")
    caption = page.locator("#preview figcaption")
    seen = {}
    for number in ("", "1", "0"):
        if number:
            page.get_by_label("Which face").fill(number)
        else:
            caption.get_by_text("2 faces were found").wait_for()
            page.get_by_role("button", name="More settings").click()
        caption.get_by_text(f"face {number or 0} of 2").wait_for()
        found = re.search(r"\((\d+)×(\d+) pixels at (\d+), (\d+)\)", caption.inner_text())
        assert found is not None
        w, h, x, y = map(int, found.groups())
        seen[number] = (x, y, w, h)
        assert frame_at(page, *seen[number])
    assert seen[""] == seen["0"] and abs(seen["0"][0] - seen["1"][0]) > 60, "one in each half"
    assert not frame_at(page, *seen["1"]), "the other's frame is not the chosen one's"
    page.get_by_label("Which face").fill("2")
    problem = page.locator("#preview .problem")
    problem.wait_for()
    assert problem.inner_text() == "--face 2: 2 found in the portrait; give 0 to 1, largest first"
    page.get_by_label("Which face").fill("")
    x, y, w, h = (4 * value for value in seen["1"])  # the canvas is a quarter of the picture, with bars
    page.get_by_label("Where the face is").fill(f"{x} {y - 128} {w} {h}")
    caption.get_by_text(f"the face ({seen['1'][2]}×{seen['1'][3]} pixels at {seen['1'][0]}, {seen['1'][1]})").wait_for()
    assert frame_at(page, *seen["1"])


@pytest.mark.slow
def test_no_secret_is_written_anywhere(
    start_command: Callable[..., Started], tiny_bundle: Path, chromium: Any, sent: dict[str, Path], tmp_path: Path
) -> None:
    """A whole visit: neither token, wrong or right, nor the visit's name nor the private key is said or kept."""
    process, url = start_command("--bundle", str(tiny_bundle), "--token", "s3cret-of-the-page")
    page = patient_page(chromium)
    page.goto(url)
    for given in ("s3cret-of-somebody-else", "s3cret-of-the-page"):
        page.get_by_label("Token").fill(given)
        page.keyboard.press("Enter")
    page.wait_for_selector("#animate")
    give(page, sent, prompt="a woman talks")
    page.get_by_role("button", name="Animate").click()
    page.locator("#stage .result video").wait_for()
    (cookie,) = page.context.cookies()
    assert page.request.get(f"{url}nothing?token=s3cret-of-somebody-else").status == 404
    got = page.request.get(url + str(page.locator("#stage video").get_attribute("src"))).body()
    shown = page.content().encode()
    page.context.close()
    kept = b"".join(file.read_bytes() for file in (tmp_path / "temporary").rglob("*") if file.is_file())
    process.send_signal(signal.SIGTERM)
    said = "".join(process.communicate(timeout=PATIENCE)).encode()
    (own,) = (settings_folder() / LOCAL_FILE).read_bytes().split(b"PRIVATE KEY-----\n")[1::2]  # what signed the result
    for secret in (b"s3cret-of", b"PRIVATE KEY", own.splitlines()[0], cookie["value"].encode()):
        assert secret not in said + kept + got + shown
    assert b"a woman talks" not in said and b"anna" not in said, "nor what visitors make"


@pytest.mark.slow
def test_what_is_exposed(
    start_command: Callable[..., Started],
    tiny_bundle: Path,
    chromium: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Beyond this machine: a token at the entrance, and a word about who can do what."""
    process, url = start_command("--bundle", str(tiny_bundle), "--host", "0.0.0.0", "--token", "s3cret")
    page = patient_page(chromium)
    page.goto(url)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("this is not it").wait_for()
    page.get_by_label("Token").fill("s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#animate")
    page.context.close()
    port = url.rsplit(":", 1)[1].strip("/")
    assert main(["web", "--port", port]) == 2
    said = capsys.readouterr().err
    assert "can't listen" in said and said.count("\n") == 1
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=PATIENCE)
    assert "whoever reaches this machine" in said and "not encrypted" in said and "s3cret" not in said


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_nothing_is_left_however_it_ends(
    start_command: Callable[..., Started], tiny_bundle: Path, sent: dict[str, Path], tmp_path: Path
) -> None:
    """A supervisor's SIGTERM, a closed terminal; what SIGKILL leaves, the next run deletes, and no other's."""
    httpx = pytest.importorskip("httpx")
    killed, url = start_command("--bundle", str(tiny_bundle))
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        client.get("/")
        files = {"files": ("anna.png", sent["portrait"].read_bytes())}
        assert client.post("/gradio_api/upload", files=files).status_code == 200
    killed.kill()
    killed.wait()
    (left,) = (tmp_path / "temporary").glob("hallo3-web-*")
    assert list(left.rglob("anna.png")), "a likeness is left"
    first, _ = start_command("--bundle", str(tiny_bundle))
    assert not left.exists()
    second, _ = start_command("--bundle", str(tiny_bundle))
    assert len(list((tmp_path / "temporary").glob("hallo3-web-*"))) == 2, "the other's is in use"
    for process, number in ((first, signal.SIGTERM), (second, signal.SIGHUP)):
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGTERM and "Traceback" not in said
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--host", "0.0.0.0"], "HALLO3_TOKEN"),
        (["--host", "::"], "HALLO3_TOKEN"),
        (["--host", "hallo3.example"], "HALLO3_TOKEN"),
        (["--token", ""], "--token"),
        (["--token", "zwölf"], "--token"),
        (["--port", "99999"], "--port"),
        (["--keep", "0"], "--keep"),
        (["--certificate", "no.pem"], "--private-key"),
    ],
)
def test_refused(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["web", "--port", "0", *options]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "word"), [(["--bundle", "no-such-bundle"], "no-such-bundle"), (["--device", "abacus"], "abacus")]
)
def test_refused_when_loading(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="needs the extra `web`")
    assert main(["web", "--port", "0", *options]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        assert main(["web", "--port", str(taken.getsockname()[1])]) == 2
    said = capsys.readouterr().err
    assert "can't listen" in said and "in use" in said and said.count("\n") == 1


def test_a_base_install_is_told_what_it_lacks() -> None:
    """Without the extra `web`, as if Gradio had never been installed."""
    code = "import sys; sys.modules['gradio'] = None; from hallo3.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "web", "--port", "0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "pip install 'hallo3[web]'" in done.stderr and done.stderr.count("\n") == 1
