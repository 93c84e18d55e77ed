"""The mark in every result: that it is generated, by which software and weights, and with which settings."""

import hashlib
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


def provenance_record(
    *, bundle: str, seed: int, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What is stated of a result in its tags and its content credentials.

    bundle: name of the weights. settings: whatever JSON can hold. inputs: hashes of the files it is made of.
    """
    return {
        "ai_generated": True,
        "digital_source_type": SOURCE_TYPE,
        "software": "hallo3",
        "version": __version__,
        "bundle": bundle,
        "seed": seed,
        "settings": dict(settings),
        **({"inputs": dict(inputs)} if inputs else {}),
    }


def record_identifier(record: Mapping[str, Any], bits: int) -> int:
    """A number of so many bits that stands for a record in the watermark: the start of its SHA-256."""
    stated = {name: value for name, value in record.items() if name != "watermark"}
    digest = hashlib.sha256(_text(stated).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest, "big") >> (256 - bits)


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """Tags for an MP4: a title and a comment for people, the record in JSON for programs."""
    return {"title": "AI-generated talking portrait", "comment": STATEMENT, "description": _text(record)}


def provenance_tags(*, bundle: str, seed: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a result without further marks. Arguments as `provenance_record`."""
    return tags_of(provenance_record(bundle=bundle, seed=seed, settings=settings))


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=True)


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record that `tags_of` wrote into a video; None for a video without one.

    Raises UserError for an unreadable file.
    """
    with open_media(path, "video") as container:
        text = container.metadata.get("description", "")
    try:
        record = json.loads(text)
    except ValueError:
        return None
    ours = isinstance(record, dict) and record.get("software") == "hallo3"
    return record if ours and isinstance(record.get("settings"), dict) else None
