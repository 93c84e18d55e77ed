"""Captions in a small natural grammar: appearance, action, surroundings and whether these move."""

from __future__ import annotations

import numpy as np

from hallo3.studio.identity import Identity
from hallo3.studio.performance import Performance
from hallo3.studio.scene import Scene

_HAIR: dict[str, tuple[str, ...]] = {
    "short": ("short {c} hair",),
    "crew cut": ("a {c} crew cut", "very short {c} hair"),
    "side part": ("neatly parted {c} hair", "short {c} hair"),
    "quiff": ("a {c} quiff", "{c} hair combed up"),
    "curly": ("curly {c} hair", "{c} curls"),
    "afro": ("a {c} afro", "a big round {c} afro"),
    "bald": ("a bald head",),
    "balding": ("thinning {c} hair", "a bald crown and {c} hair at the sides"),
    "shoulder": ("shoulder-length {c} hair", "long {c} hair"),
    "man bun": ("{c} hair tied in a bun",),
    "long": ("long {c} hair", "long straight {c} hair"),
    "wavy": ("long wavy {c} hair", "wavy {c} hair"),
    "bob": ("a {c} bob", "chin-length {c} hair"),
    "bangs": ("{c} hair with bangs", "long {c} hair and a fringe"),
    "bun": ("{c} hair in a bun",),
    "ponytail": ("a {c} ponytail", "{c} hair in a ponytail"),
    "pixie": ("a {c} pixie cut", "short {c} hair"),
    "headscarf": ("a {hat} headscarf",),
    "pigtails": ("{c} pigtails",),
}
_BEARDS = {"stubble": "stubble", "moustache": "a moustache", "goatee": "a goatee", "full": "a full beard"}
_HATS = {"beanie": "a {hat} beanie", "cap": "a {hat} cap", "brim": "a {hat} hat"}
_SKINS = {"pale": "pale", "fair": "fair", "light": "light", "olive": "olive", "tan": "tanned", "brown": "brown",
          "dark": "dark", "deep": "deep brown"}  # fmt: skip
_PROPS = {
    "phone": ("while holding a phone to the ear", "on the phone"),
    "microphone": ("into a microphone held in one hand", "while holding a microphone"),
    "desk microphone": ("into a microphone on a stand", "behind a studio microphone"),
}
_FOREGROUNDS = {
    "leaves": ("with leaves in the foreground", "behind blurred leaves"),
    "lights": ("with blurred lights in the foreground", "behind soft lights"),
}
# Short: with them a caption still has to go into the bundle's word pieces.
_LIGHTS = {
    "harsh": ("Harsh light from the {side}.", "Hard light from the {side}."),
    "lamp": ("A lamp swings.", "A swinging lamp."),
    "passing": ("Lights pass by.", "Passing lights."),
    "fading": ("The light fades in and out.", "Fading light."),
}
_CAMERAS = {
    "closer": ("The camera moves closer.", "The camera pushes in."),
    "away": ("The camera moves away.", "The camera pulls back."),
    "zoom": ("The camera moves to and fro.",),
    "left": ("The camera pans left.", "The camera turns left."),
    "right": ("The camera pans right.", "The camera turns right."),
    "pan": ("The camera pans to and fro.",),
    "hand-held": ("A hand-held camera.", "The camera shakes."),
}
# Where, then what moves, then what stands still; a star marks whole clauses.
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "backdrop": (
        ("in front of a plain backdrop", "in a photo studio"),
        (),
        ("*the background is still", "*nothing moves behind {them}"),
    ),
    "room": (
        ("in a room with a window", "at home in a bright room", "in front of a wall with a picture"),
        (),
        ("*the room is still", "*the background does not move"),
    ),
    "bookshelf": (
        ("in front of a bookshelf", "in a library"),
        (),
        ("*the shelves behind are still", "a still background"),
    ),
    "sea": (
        ("on a beach", "by the sea", "at the seaside"),
        ("waves rolling behind {them}", "rolling waves in the background", "*the sea moves in waves"),
        ("the sea calm and still", "still water behind {them}", "a motionless sea in the background"),
    ),
    "foliage": (
        ("in a garden", "among green leaves", "in front of a hedge"),
        ("*the leaves sway in the wind", "leaves moving in the breeze behind {them}"),
        ("*the leaves are still", "*not a leaf moves"),
    ),
    "street": (
        ("on a street at night", "in the city at night"),
        ("the lights of traffic passing behind {them}", "*cars drive by in the background"),
        ("still lights in the background", "*the street lights are still and blurred"),
    ),
    "snow": (
        ("in a snowy forest", "outdoors in winter"),
        ("snow falling all around", "*snowflakes fall behind {them}"),
        ("*the snow lies still", "a still winter landscape behind {them}"),
    ),
    "fire": (
        ("by a campfire at night", "next to a fire"),
        ("*the flames flicker and sparks rise", "flickering flames behind {them}"),
        ("*the flames are frozen still", "a still fire behind {them}"),
    ),
    "rain": (
        ("at a window on a rainy day", "in front of a wet window"),
        ("*rain runs down the glass", "raindrops falling behind {them}"),
        ("still drops on the glass", "*the drops on the window do not move"),
    ),
    "sky": (
        ("in the mountains", "on a meadow below the mountains", "outdoors under a blue sky"),
        ("*clouds drift across the sky", "moving clouds behind {them}"),
        ("*the clouds stand still", "a still sky behind {them}"),
    ),
}


def caption(rng: np.random.Generator, identity: Identity, scene: Scene, performance: Performance) -> str:
    """One or two English sentences about a clip; the same generator state gives the same words."""
    who = f"{_article(_person(rng, identity))} {_person_phrase(rng, identity)}".strip()
    action = _action(rng, scene, performance)
    where, moving, still = _PLACES[scene.place]
    them = {"woman": "her", "man": "him"}[identity.sex]
    motion = _choose(rng, moving if scene.dynamic else still).format(them=them)
    place = _choose(rng, where)
    if scene.foreground != "none":
        motion = f"{motion}, {_choose(rng, _FOREGROUNDS[scene.foreground])}"
    shape = int(rng.integers(3))
    # Drawn after all else, so that the words of a clip in steady light do not hang on it.
    further = "".join(f" {line}" for line in _further(rng, scene, performance, them))
    if shape == 1:
        motion = motion.lstrip("*")
        return f"{who} {action} {place}. {motion[0].upper()}{motion[1:]}.{further}"
    motion = motion.replace("*", "while ")
    if shape == 0:
        return f"{who} {action} {place}, {motion}.{further}"
    return f"{place[0].upper()}{place[1:]}, {who[0].lower()}{who[1:]} {action}, {motion}.{further}"


def _further(rng: np.random.Generator, scene: Scene, performance: Performance, them: str) -> list[str]:
    """Sentences on what is not in every clip."""
    lines = []
    if scene.lighting != "steady":
        side = "left" if scene.light[0] < 0 else "right"
        lines.append(_choose(rng, _LIGHTS[scene.lighting]).format(side=side, them=them))
    moved = _camera(performance)
    if moved:
        lines.append(_choose(rng, _CAMERAS[moved]))
    return lines


def _camera(performance: Performance) -> str:
    """What the camera does, a key of `_CAMERAS`, as the tracks show it; empty where that is next to nothing."""
    across, zoom = performance.turn_x, performance.zoom
    if np.ptp(performance.turn_y):
        return "hand-held"
    if np.ptp(zoom) > 0.02:
        grown = float(zoom[-1] / zoom[0])
        return "closer" if grown > 1.02 else "away" if grown < 0.98 else "zoom"
    if np.ptp(across) > 0.02:
        moved = float(across[-1] - across[0])  # of the picture: the camera turns the other way
        return "right" if moved < -0.02 else "left" if moved > 0.02 else "pan"
    return ""


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _article(noun: str) -> str:
    return f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}"


def _person(rng: np.random.Generator, identity: Identity) -> str:
    adjective = {"young": "young ", "elderly": "elderly ", "adult": "", "child": "young "}[identity.age]
    if identity.age in ("young", "child") and rng.random() < 0.5:
        adjective = ""
    return adjective + identity.noun


def _person_phrase(rng: np.random.Generator, identity: Identity) -> str:
    """What a person looks like: hair first, then up to two further things in random order."""
    words = {"c": identity.hair_colour, "hat": identity.hat_colour}
    first = _choose(rng, _HAIR[identity.hair]).format(**words)
    further = [f"{identity.eye_colour} eyes", f"{_SKINS[identity.skin]} skin"]
    telling = []
    if identity.glasses != "none":
        telling.append("glasses" if rng.random() < 0.5 else f"{identity.glasses} glasses")
    if identity.beard != "none":
        telling.append(_BEARDS[identity.beard])
    if identity.hat != "none":
        telling.append(_HATS[identity.hat].format(**words))
    if identity.freckles:
        further.append("freckles")
    if identity.earrings:
        further.append("earrings")
    chosen = [str(w) for w in rng.permutation(further)[: int(rng.integers(0, 2))]]
    parts = [first, *telling, *chosen]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    clothes = f"{identity.clothes_colour} {identity.clothes}"
    if identity.pattern in ("striped", "checked", "dotted") and rng.random() < 0.7:
        clothes = f"{identity.pattern} {clothes}"
    wearing = f", wearing {_article(clothes).lower()}," if rng.random() < 0.5 else ""
    return f"with {listed}{wearing}"


def _action(rng: np.random.Generator, scene: Scene, performance: Performance) -> str:
    verb = _choose(rng, ("talks", "speaks", "is talking", "is speaking"))
    turn = float(np.mean(performance.yaw))
    tilt = float(np.mean(performance.pitch))
    if scene.prop != "none":
        verb = f"{verb} {_choose(rng, _PROPS[scene.prop])}"
    elif abs(turn) < 0.2 and rng.random() < 0.5:
        verb = f"{verb} to the camera"
    if abs(turn) > 1.3:
        verb += _choose(rng, (", seen right from the side", " in full profile"))
    elif abs(turn) > 0.6:
        verb += _choose(rng, (", seen from the side", " in profile"))
    elif abs(tilt) > 0.15:
        verb += f", seen from {'far ' if abs(tilt) > 0.37 else ''}{'above' if tilt < 0 else 'below'}"
    if float(np.mean(performance.smile)) > 0.45 and rng.random() < 0.6:
        verb += " with a smile"
    return verb
