"""The model card of a bundle, `README.md` beside its index: what it is, what it came from, what it may be used for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..version import __version__
from .parts import PARTS, count_parameters

CARD = "README.md"
MARK = "<!-- written by hallo3; take this line out to keep a text of your own -->"
HEAD = """---
library_name: hallo3
pipeline_tag: image-to-video
tags: [talking-head, audio-driven, portrait-animation, hallo3]
license: {licence}
---
"""
LICENCE = "_hallo3_licence"
"""Note of the index: the licence of all parts together, as the hub calls it; of weights that come from nowhere else."""
USE = """
## Use

```sh
hallo3 animate portrait.png speech.wav --bundle {name} --prompt "A woman talks by the sea" -o out.mp4
```

## What it is for, and what not

Making a portrait speak, of people who have agreed or who do not exist. Not for passing a result off as genuine: every
video that hallo3 makes says that it is AI-generated, in its tags, its content credentials and its pixels.
"""
OF_OTHERS = """
## Licences

The weights keep the licences of what they come from. CogVideoX-5B, and Hallo3, which was trained from it: the CogVideoX
licence (research is free, commercial use needs a registration). InsightFace's models in `face_encoder`: non-commercial
research only. T5 and wav2vec2: Apache-2.0. Kim_Vocal_2: MIT.
"""
OF_ITS_OWN = """
## Licence

{licence}. All parts were trained from scratch; none comes from weights of others.
"""


def write_card(
    folder: Path, stage: Path, parts: Mapping[str, tuple[str, str]], config: Mapping[str, Any], notes: Mapping[str, Any]
) -> None:
    """Writes the card into `stage`; a text of the user's own in `folder`, the bundle's place, is kept.

    parts: those that the bundle will have, in `stage` or in `folder`. config, notes: as in the index.
    """
    old = folder / CARD
    if old.exists() and MARK not in old.read_text(encoding="utf-8", errors="replace"):
        return
    places = {name: stage / name if (stage / name).is_dir() else folder / name for name in PARTS if name in parts}
    licence = notes.get(LICENCE)
    text = HEAD.format(licence=str(licence).lower() if licence else "other") + MARK + "\n"
    text += _about(folder.name, config) + _table(parts, places) + _origin(notes) + USE.format(name=folder.name)
    text += OF_ITS_OWN.format(licence=licence) if licence else OF_OTHERS
    (stage / CARD).write_text(text, encoding="utf-8")


def _about(name: str, config: Mapping[str, Any]) -> str:
    k = dict(config)
    return f"""
# {name}

A bundle for [hallo3](https://arxiv.org/abs/2412.00733) {__version__}: a portrait, a recording of speech and a line of
text become a video in which that person says it.

- Frames of {k["sample_width"]}×{k["sample_height"]} pixels, {k["fps"]} a second
- Clips of {k["num_frames"]} frames that share {k["motion_frames"]}
- Sampling steps: {k["num_inference_steps"]}
- Guidance: speech {k["speech_scale"]:g}, text {k["text_scale"]:g}, reference {k["reference_scale"]:g}
"""


def _table(parts: Mapping[str, tuple[str, str]], places: Mapping[str, Path]) -> str:
    rows = ["", "| part | class | parameters |", "|---|---|---|"]
    for name, place in places.items():
        weights = PARTS[name].weights
        count = f"{count_parameters(place, weights):,}" if weights else ""
        rows.append(f"| {name} | `{parts[name][1]}` | {count} |")
    rows += [f"| {name} | not here yet: `hallo3 convert` adds it | |" for name in PARTS if name not in parts]
    return "\n".join(rows) + "\n"


def _origin(notes: Mapping[str, Any]) -> str:
    told = {
        name: value
        for name, value in notes.items()
        if not name.endswith(("missing_parts", "version", "class_name", "licence"))
    }
    if not told:
        return ""
    lines = [f"- {name.removeprefix('_hallo3_').replace('_', ' ')}: {_words(value)}" for name, value in told.items()]
    return "\n".join(["", "## Where it comes from", "", *lines, ""])


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_words(part)}" for name, part in value.items())
    return ", ".join(f"`{part}`" for part in value) if isinstance(value, list | tuple) else f"`{value}`"
