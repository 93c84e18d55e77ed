"""The page in headless Chromium: a run and its live video, two visitors, cancelling, wrong files, a phone, the dark."""

import contextlib
import errno
import os
import re
import shlex
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pytest
from PIL import Image
from web_help import give, press_until

import tiny
from hallo3.cli import main
from hallo3.media.credentials import read_credentials
from hallo3.media.provenance import read_provenance
from hallo3.media.video import probe, read_video
from waiting import until

pytest.importorskip("gradio", reason="needs the extra `web`")
Visit = Callable[..., Any]


def problem_in(page: Any, place: str, words: str) -> str:
    """The error shown in a place, once it has these words."""
    found = page.locator(f"#{place} .problem", has_text=words)
    found.wait_for()
    assert found.get_attribute("role") == "alert"
    line = str(found.inner_text())
    assert "\n" not in line and "Traceback" not in line
    return line


def address_of_video(page: Any) -> str:
    return urljoin(page.url, str(page.locator("#stage video").get_attribute("src")).partition("#")[0])


def seconds_played(page: Any) -> float:
    """Plays the video on the stage, from its start to its end; returns the seconds at which it ends."""
    seconds = page.evaluate("""async () => {
        const video = document.querySelector("#stage video");
        video.muted = true;
        video.currentTime = 0;
        await video.play();
        if (!video.ended) await new Promise((resolve, reject) => {
            video.addEventListener("ended", resolve);
            video.addEventListener("error", () => reject(video.error));
        });
        const shown = video.getVideoPlaybackQuality();
        if (!shown.totalVideoFrames || video.videoWidth != 64) throw new Error("nothing was shown");
        return video.currentTime;
    }""")
    return float(seconds)


def test_what_is_shown_answers_the_last_question(site: Any) -> None:
    """One event asks for the preview, whatever has changed: of two, the older one's answer could come last."""
    from hallo3.web.page import Page

    page = Page(site.answers, "embedded", alone=True)
    events = list(page.build().fns.values())
    (look,) = (event for event in events if page.preview in event.outputs)
    assert look.trigger_mode == "always_last"
    parts = (page.portrait, page.framing, page.face, page.face_box, page.no_face)
    assert {target for target, _ in look.targets} == {part._id for part in parts}
    (foretell,) = (event for event in events if page.estimate in event.outputs and event.targets[0][0] is not None)
    assert foretell.trigger_mode == "always_last" and len(foretell.targets) == 5


def test_it_plays_while_it_grows(site: Any, brake: Any, visit: Visit, sent: dict[str, Path]) -> None:
    """After the first clip to its end, after the second from where that begins, then whole; decoded, not only named."""
    page = visit(site.url)
    if not page.evaluate("""document.createElement('video').canPlayType('video/mp4; codecs="avc1.640028"')"""):
        pytest.skip("needs a Chromium that decodes H.264")
    give(page, sent)
    page.get_by_role("button", name="Animate").click()
    page.locator("#stage .result video").wait_for()
    of_a_clip, brake.calls = brake.calls // 3, 0
    for clips in (1, 2):
        brake.hold_while(lambda job, clips=clips: brake.calls > clips * of_a_clip)
        if clips == 1:
            page.get_by_role("button", name="Animate").click()
        start = (clips - 1) * 7 / 25
        page.locator(f"#stage .live video[src*='t={start:.2f}']").wait_for()
        assert -0.03 < seconds_played(page) - clips * 7 / 25 < 0.1, "to the end of its last packet of sound"
    brake.release()
    page.locator("#stage .result video").wait_for()
    assert -0.03 < seconds_played(page) - 0.6 < 0.1


def test_a_whole_run(site: Any, brake: Any, visit: Visit, sent: dict[str, Path], tmp_path: Path) -> None:
    """The video can be seen after its first clip, after a reload too, then whole, kept, made again, and deleted."""
    page = visit(site.url)
    give(page, sent, seed="5", steps="3", prompt="a woman talks")
    page.locator("#estimate", has_text="0.6 s of speech (3 clips of 3 steps)").wait_for()
    brake.hold_while(lambda job: site.answers.live(job) is not None)
    page.get_by_role("button", name="Animate").click()
    page.locator("#progress progress").wait_for()
    page.locator("#animate:disabled").wait_for()
    page.locator("#stage .live video").wait_for()
    page.locator("#progress", has_text=re.compile(r"Clip \d of 3.*; \d+:\d\d left")).wait_for()
    page.reload()
    page.locator("#stage .live video").wait_for()
    page.locator("#rights input:checked").wait_for()
    brake.release()
    page.locator("#stage .result video").wait_for()
    page.locator("#progress progress").wait_for(state="detached")
    page.locator("#animate:not(:disabled)").wait_for()
    assert not page.evaluate("document.querySelector('#stage video').muted")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename.startswith("hallo3-")
    download.value.save_as(tmp_path / "got.mp4")
    record, signed = read_provenance(tmp_path / "got.mp4"), read_credentials(tmp_path / "got.mp4")
    assert probe(tmp_path / "got.mp4").frames == 15
    assert record is not None and record["seed"] == 5 and record["watermark"] and signed is not None
    page.get_by_text("Make it again").click()
    words = page.locator("#stage pre").first.inner_text()
    assert words.startswith("hallo3 animate anna.png hello.wav --bundle")
    assert words.endswith("--prompt 'a woman talks' --seed 5 --steps 3 --no-face")
    address = address_of_video(page)
    assert page.request.get(address).status == 200
    page.get_by_role("button", name="Delete all of this visit").click()
    page.locator("#stage video").wait_for(state="detached")
    assert page.request.get(address).status == 404


def test_the_command_makes_the_same_video(site: Any, visit: Visit, sent: dict[str, Path], tmp_path: Path) -> None:
    """As it is shown, where the files lie under their own names, however these begin and whatever is in them."""
    odd = {"portrait": "-my 'best' $portrait.png", "speech": "speech & <b>é.wav"}
    here, values = tmp_path / "here", {"prompt": '-a "woman\'s" talk', "seed": str((1 << 63) - 1), "steps": "3"}
    here.mkdir()
    for name, file in odd.items():
        (here / file).write_bytes(sent[name].read_bytes())
    page = visit(site.url)
    give(page, {name: here / file for name, file in odd.items()}, **values)
    page.get_by_label("By the prompt").fill("2.25")
    page.locator("#quality").get_by_label("high").check()
    page.locator("#framing").get_by_label("crop").check()
    page.get_by_role("button", name="Animate").click()
    page.locator("#stage .result video").wait_for()
    (tmp_path / "page.mp4").write_bytes(page.request.get(address_of_video(page)).body())
    page.get_by_text("Make it again").click()
    program, *words = shlex.split(page.locator("#stage pre").first.inner_text())
    with contextlib.chdir(here):
        assert program == "hallo3" and main([*words, "-q"]) == 0
    (made,) = here.glob("*.mp4")
    assert (read_video(made).frames == read_video(tmp_path / "page.mp4").frames).all()
    again, first = read_provenance(made), read_provenance(tmp_path / "page.mp4")
    assert again is not None and first is not None and again["settings"] == first["settings"]
    assert again["inputs"] == first["inputs"]


def test_two_visitors_and_cancelling(site: Any, brake: Any, visit: Visit, sent: dict[str, Path]) -> None:
    """One waits while the other's is made; who cancels stops it within a step; neither sees what is the other's."""
    ann, ben = visit(site.url), visit(site.url)
    give(ann, sent, seed="1", steps="50")
    give(ben, sent, seed="2")
    brake.hold_while(lambda job: (job.progress or {}).get("event") == "step")
    ann.get_by_role("button", name="Animate").click()
    ann.locator("#progress", has_text="Clip 1 of 3, step 1 of 50").wait_for()
    ben.get_by_role("button", name="Animate").click()
    ben.locator("#progress", has_text="Waiting").wait_for()
    (job,) = [job for job in site.every_job() if job.state == "running"]
    ann.get_by_role("button", name="Cancel").click()
    assert asked_to(site, job) == "cancel"
    brake.release()
    ann.locator("#stage", has_text="Cancelled").wait_for()
    job = site.answers.jobs.get(job.id)
    assert job.state == "cancelled" and job.progress["step"] == 0, "the step in hand was the last"
    ben.locator("#stage .result video").wait_for()
    ann.locator("#steps input, #steps textarea").fill("2")
    ann.get_by_role("button", name="Animate").click()
    ann.locator("#stage .result video").wait_for()
    ann.locator("#stage", has_text="seed 1").wait_for()
    ben.locator("#stage", has_text="seed 2").wait_for()
    ann.locator("#history summary", has_text="cancelled").wait_for()
    assert ben.locator("#history summary").count() == 0
    videos = {page: address_of_video(page) for page in (ann, ben)}
    for page, other in ((ann, ben), (ben, ann)):
        assert page.request.get(videos[page]).status == 200
        assert page.request.get(videos[other]).status == 404


def asked_to(site: Any, job: Any) -> str:
    """What the worker is told to do with its job, once that is not to go on."""

    def wanted() -> str:
        said = str(site.answers.jobs.store.alive(job.id, "worker-1"))
        return "" if said == "go on" else said

    return until(wanted)


def type_into(page: Any, place: str, words: str) -> None:
    """Goes to a field by keyboard, and types in place of what stands there.

    A field of a part that has just been opened may be drawn again, and what was typed within that blink is lost.
    """

    def typed() -> bool:
        press_until(page, place, "Control+a")
        page.keyboard.type(words)
        page.wait_for_timeout(200)
        return bool(page.locator(f"{place} input, {place} textarea").input_value() == words)

    until(typed)


def test_by_keyboard_alone(site: Any, brake: Any, visit: Visit, sent: dict[str, Path]) -> None:
    """Upload, settings, preset, example prompt, cancelling, what was made before, and deleting: without a mouse."""
    page = visit(site.url)
    for name in ("portrait", "speech"):
        with page.expect_file_chooser() as chooser:
            press_until(page, f"#{name} button[aria-label*='upload']", "Enter")
        chooser.value.set_files(sent[name])
        page.locator(f"#{name} button[aria-label*='upload']").wait_for(state="detached")
    press_until(page, "#prompts", "Enter")
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('A woman talks by the sea')")
    press_until(page, "#quality input[value=draft]", "Space")
    press_until(page, "#more button", "Enter")
    type_into(page, "#seed", "7")
    type_into(page, "#steps", "40")
    press_until(page, "#framing input[value=pad]", "Space")
    press_until(page, "#no-face input", "Space")
    page.locator("#estimate", has_text="quality draft: 40 steps").wait_for()
    page.locator("#preview img").wait_for()
    press_until(page, "#rights input", "Space")
    brake.hold_while(lambda job: (job.progress or {}).get("event") == "step")
    press_until(page, "#animate", "Enter")
    page.locator("#progress", has_text="step 1 of").wait_for()
    press_until(page, "#cancel", "Enter")
    (job,) = [job for job in site.every_job() if job.state == "running"]
    assert asked_to(site, job) == "cancel"
    brake.release()
    page.locator("#stage", has_text="Cancelled").wait_for()
    settings = site.answers.jobs.get(job.id).settings
    assert (settings["seed"], settings["quality"], settings["framing"]) == (7, "draft", "pad")
    assert settings["prompt"].startswith("A woman talks by the sea") and settings["no_face"]
    type_into(page, "#steps", "2")
    for number in (1, 2):  # the first then is history
        press_until(page, "#animate:not(:disabled)", "Enter")
        page.locator("#history details.earlier").nth(number - 1).wait_for()
        page.locator("#stage .result video").wait_for()
    press_until(page, "#history details.earlier:first-child > summary", "Enter")
    assert page.locator("#history details.earlier[open] video").is_visible()
    press_until(page, "#history details.earlier:first-child a.download", "Tab")
    press_until(page, "#clear", "Enter")
    page.locator("#stage video").wait_for(state="detached")
    page.locator("#history details").first.wait_for(state="detached")


def test_a_full_disk(site: Any, visit: Visit, sent: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in one line where a video is begun; one that is being made waits, says why, and goes on later."""
    monkeypatch.setattr("hallo3.serving.worker.SECONDS_UNTIL_ROOM", 0.2)
    fsync, full = os.fsync, [lambda: True]

    def fsync_on_a_full_disk(file: int) -> None:
        if full[0]():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    page = visit(site.url)
    give(page, sent)
    monkeypatch.setattr(os, "fsync", fsync_on_a_full_disk)
    page.get_by_role("button", name="Animate").click()
    line = problem_in(page, "problem", "disk is full")
    assert line == "server: can't do this now (its disk is full); try again later"
    full[0] = lambda: any(site.answers.live(job) for job in site.every_job())  # from the second clip on
    page.get_by_role("button", name="Animate").click()
    page.locator("#progress", has_text="can't go on now (its disk is full); the video is gone on with later").wait_for()
    full[0] = lambda: False
    page.locator("#stage .result video").wait_for()
    assert page.locator(".problem").count() == 0


def test_wrong_files(site: Any, visit: Visit, sent: dict[str, Path], tmp_path: Path) -> None:
    """Each is told at once, by its own name, in the words of the command line; nothing can be begun with it."""
    page = visit(site.url)
    page.get_by_role("button", name="Animate").click()
    assert problem_in(page, "problem", "portrait").startswith("portrait: there is none")
    (tmp_path / "text.png").write_text("no picture " * 99)
    silent = tiny.write_wav(tmp_path / "silent.wav", np.zeros(16000, np.float32))
    not_a_picture = "text.png: not a picture that can be read; give a PNG, JPEG or WebP file"
    page.locator("#portrait input[type=file]").set_input_files(tmp_path / "text.png")
    assert problem_in(page, "preview", "text.png") == not_a_picture
    page.locator("#speech input[type=file]").set_input_files(silent)
    assert problem_in(page, "heard", "silent") == "silent.wav: the sound is silent; give a recording of speech"
    page.locator("#rights input").check()
    page.get_by_role("button", name="Animate").click()
    assert problem_in(page, "problem", "text.png") == not_a_picture
    page.locator("#portrait").get_by_label("Remove Image").click()
    page.locator("#portrait input[type=file]").set_input_files(sent["portrait"])
    problem_in(page, "preview", "no face was found")
    page.locator("#speech").get_by_label("Clear").click()
    long = tiny.write_wav(tmp_path / "long.wav", tiny.speech(3.5))
    page.locator("#speech input[type=file]").set_input_files(long)
    problem_in(page, "heard", "long.wav: the sound is longer than 3 s")
    assert [job for job in site.every_job() if not job.is_over] == []


def test_what_is_asked_before_a_start(site: Any, visit: Visit, sent: dict[str, Path]) -> None:
    """Settings within their ranges, and the statement of rights."""
    page = visit(site.url)
    give(page, sent)
    page.locator("#steps input, #steps textarea").fill("0")
    page.get_by_role("button", name="Animate").click()
    problem_in(page, "problem", "--steps 0: must be between 1 and 1000")
    page.locator("#steps input, #steps textarea").fill("20")
    page.locator("#quality").get_by_label("draft").check()
    page.locator("#estimate", has_text="quality draft: 20 steps").wait_for()
    page.locator("#rights input").uncheck()
    page.get_by_role("button", name="Animate").click()
    problem_in(page, "problem", "rights: nothing is made before")
    assert page.locator("#stage video").count() == 0


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
def test_on_a_phone(site: Any, visit: Visit, scheme: str, light: bool) -> None:
    """Nothing reaches over the edge, and dark is dark."""
    page = visit(site.url, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="More settings").tap()
    page.get_by_label("Seed").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    picture = np.asarray(Image.open(BytesIO(page.screenshot())).convert("L"))
    assert (np.median(picture) > 200) == light and (np.median(picture) < 60) != light


def test_a_result_on_a_phone(site: Any, brake: Any, visit: Visit, sent: dict[str, Path], tmp_path: Path) -> None:
    """With long names and a long prompt, everything unfolded: nothing reaches over the edge or is out of reach."""
    long = {name: tmp_path / f"{name}{'-of-somebody' * 9}{path.suffix}" for name, path in sent.items()}
    for name, path in long.items():
        path.write_bytes(sent[name].read_bytes())
    page = visit(site.url, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    give(page, long, prompt="talks" * 60)
    for _ in range(2):
        brake.hold_while()
        page.locator("#animate:not(:disabled)").tap()
        page.locator("#progress progress").wait_for()
        brake.release()
        page.locator("#stage .result video").wait_for()
        page.locator("#progress progress").wait_for(state="detached")
    page.locator("#history summary").first.tap()
    for summary in page.get_by_text("Make it again").all():
        summary.tap()
    assert page.locator("#stage pre").first.is_visible() and page.locator("#history video").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    outside = page.evaluate("""() => [...document.querySelectorAll("button, a, input, textarea, summary, video, pre")]
        .filter(one => one.checkVisibility({visibilityProperty: true, opacityProperty: true}))
        .map(one => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
        .filter(([_, box]) => box.width && (box.left < -0.5 || box.right > 390.5)).map(([html]) => html)""")
    assert outside == []
    for place in ("#stage a.download", "#history a.download"):
        with page.expect_download() as download:
            page.locator(place).tap()
        assert download.value.suggested_filename.startswith("hallo3-")
    page.locator("#clear").tap()
    page.locator("#stage video").wait_for(state="detached")


def test_an_example_prompt(site: Any, visit: Visit) -> None:
    """A click puts it into the field, where it can be changed."""
    page = visit(site.url)
    chosen = page.locator("#prompts button").nth(1)
    words = chosen.inner_text()
    chosen.click()
    page.wait_for_function("words => document.querySelector('#prompt textarea').value === words", arg=words)
    page.locator("#prompts button").first.click()
    page.wait_for_function("words => document.querySelector('#prompt textarea').value !== words", arg=words)


def test_paste(site: Any, visit: Visit) -> None:
    """A picture that was copied elsewhere."""
    page = visit(site.url, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Animate without knowing who it is").check()
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(64, 48);
        canvas.getContext("2d").fillRect(0, 0, 64, 48);
        const picture = await canvas.convertToBlob({type: "image/png"});
        await navigator.clipboard.write([new ClipboardItem({"image/png": picture})]);
    }""")
    page.get_by_label("Paste from clipboard").click()
    page.locator("#preview figcaption", has_text="portrait 64×48").wait_for()


def test_camera_and_microphone(start: Callable[..., Any], visit: Visit) -> None:
    """Chromium's own pretended ones: what they give arrives as a portrait and as speech, however long it became."""
    page = visit(start().url, permissions=["camera", "microphone"])
    page.get_by_role("button", name="More settings").click()
    page.get_by_label("Animate without knowing who it is").check()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("(document.querySelector('#portrait video') ?? {}).videoWidth > 0")
    page.get_by_label("capture photo").click()
    page.locator("#preview img").wait_for()
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.locator("#speech time.duration").filter(has_not_text="0:00").wait_for()
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#estimate", has_text="About").wait_for()
