"""Portraits and recordings to try the page with: drawn people, synthetic voices (`python -m hallo3.studio.sample`)."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..bundles.places import embedded_bundle


@dataclass(frozen=True)
class Person:
    """portrait: a picture. caption: what it shows, as a prompt."""

    portrait: Path
    caption: str


@dataclass(frozen=True)
class Recording:
    """speech: a sound file. words: what is said."""

    speech: Path
    words: str


@dataclass(frozen=True)
class Samples:
    """What there is to choose from."""

    people: list[Person]
    recordings: list[Recording]
    prompts: list[str]


def find_samples() -> Samples:
    """The package's samples: the embedded bundle's, then the page's own."""
    own, first = Path(str(files("hallo3") / "web" / "samples")), embedded_bundle() / "sample"
    listed = json.loads((own / "samples.json").read_text(encoding="utf-8"))
    people = [Person(own / name, caption) for name, caption in listed["people"].items()]
    recordings = [Recording(own / name, words) for name, words in listed["recordings"].items()]
    if (first / "portrait.png").exists():
        people.insert(0, Person(first / "portrait.png", (first / "prompt.txt").read_text(encoding="utf-8").strip()))
        recordings.append(Recording(first / "speech.wav", listed["embedded"]))
    return Samples(people, recordings, listed["prompts"])
