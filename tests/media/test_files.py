import os

import pytest

from hallo3.errors import UserError
from hallo3.media.files import ensure_writable, replace_file, require_file


def refusal(path):
    with pytest.raises(UserError) as caught:
        ensure_writable(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and ";" in message
    return message


def test_a_place_that_can_be_written(tmp_path):
    assert ensure_writable(str(tmp_path / "a.mp4")) == tmp_path / "a.mp4"
    (tmp_path / "b.MP4").write_bytes(b"old")
    assert ensure_writable(tmp_path / "b.MP4").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["b.MP4"]


def test_a_name_without_a_folder_is_in_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ensure_writable("a.mp4")


def test_places_that_cannot_be_written(tmp_path):
    assert "no folder" in refusal(tmp_path / "none" / "a.mp4")
    assert not (tmp_path / "none").exists()
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "c.mp4").mkdir()
    assert "is a folder" in refusal(tmp_path / "c.mp4")
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file" / "a.mp4")
    for name in ("a.avi", "a", "a.mp4.txt", ".mp4"):
        assert "must end in .mp4" in refusal(tmp_path / name)
    assert "cannot be written" in refusal(tmp_path / ("a" * 250 + ".mp4"))


def test_a_file_that_can_be_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert require_file(str(tmp_path / "a"), "speech") == tmp_path / "a"


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a plain file"):
        require_file(tmp_path / "pipe", "speech")


def test_a_replaced_file_is_whole(tmp_path):
    replace_file(tmp_path / "a", b"one")
    replace_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]
