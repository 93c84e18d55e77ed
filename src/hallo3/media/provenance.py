"""The mark in every result: that it is generated, by which software and weights, and with which settings."""

import json
import os
from collections.abc import Mapping
from typing import Any

from ..version import __version__
from .containers import open_media

# IPTC's term for a picture in which a model has changed or added to what a camera saw.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
STATEMENT = (
    "AI-generated: hallo3 made this video from one picture and a recording of speech. "
    "It does not show the person saying this."
)


def provenance_tags(*, bundle: str, seed: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Tags for an MP4: a title and a comment for people, a description in JSON for programs.

    bundle: name or path of the weights. settings: whatever JSON can hold.
    """
    record = {
        "ai_generated": True,
        "digital_source_type": SOURCE_TYPE,
        "software": "hallo3",
        "version": __version__,
        "bundle": bundle,
        "seed": seed,
        "settings": dict(settings),
    }
    return {
        "title": "AI-generated talking portrait",
        "comment": STATEMENT,
        "description": json.dumps(record, ensure_ascii=False, sort_keys=True),
    }


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record that `provenance_tags` wrote into a video; None for a video without one.

    Raises UserError for an unreadable file.
    """
    with open_media(path, "video") as container:
        text = container.metadata.get("description", "")
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.get("software") == "hallo3" else None
