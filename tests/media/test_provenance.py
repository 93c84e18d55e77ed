import json

import pytest
from media_samples import write_video

from hallo3 import __version__
from hallo3.errors import UserError
from hallo3.media.provenance import STATEMENT, provenance_tags, read_provenance


def test_the_tags_state_it_for_people_and_for_programs():
    tags = provenance_tags(bundle="weights", seed=5, settings={"steps": 50})
    assert tags["comment"] == STATEMENT and STATEMENT.startswith("AI-generated")
    record = json.loads(tags["description"])
    assert record["ai_generated"] is True
    assert (record["software"], record["version"]) == ("hallo3", __version__)
    assert (record["bundle"], record["seed"], record["settings"]) == ("weights", 5, {"steps": 50})
    assert "trainedAlgorithmicMedia".lower() in record["digital_source_type"].lower()


def test_the_same_settings_give_the_same_tags():
    one = provenance_tags(bundle="a", seed=1, settings={"x": 1, "y": 2})
    assert one == provenance_tags(bundle="a", seed=1, settings={"y": 2, "x": 1})


def test_a_video_of_others_has_no_provenance(tmp_path):
    assert read_provenance(write_video(tmp_path / "a.mp4", 0.2)) is None


def test_a_missing_video(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_provenance(tmp_path / "a.mp4")
