"""Things to say: English sentences from a small grammar, and made-up words that any language's voice can pronounce."""

from __future__ import annotations

import re

import numpy as np


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_WORDS: dict[str, tuple[str, ...]] = {
    "person": _listed(
        "my mother|my father|the baker|our neighbour|the old sailor|a young painter|the woman next door|her brother|"
        "the teacher|a farmer|the mayor|my best friend|the boatman|a famous pianist|the postman|the girl in blue|"
        "his uncle|the museum guide|a weather man|the choir|our new doctor|someone I know|the whole village|Bob|Emma|"
        "Mary|Paul|Oliver|Amy|Hugo|Moira"
    ),
    "verb": _listed(
        "found|bought|painted|remembered|carried|described|forgot|opened|promised me|brought home|photographed|"
        "mended|hid|borrowed|asked about|looked for|talked about|waited for|moved|wrapped up|dreamed of|washed|"
        "measured|built|gave away|made|lost|showed us|prefers|wants|admires"
    ),
    "thing": _listed(
        "a blue boat|the broken window|three apples|an old map|the last piece of cake|a pair of warm boots|the piano|"
        "a bowl of soup|seven white horses|the summer house|a box of matches|the moon|a photograph of the harbour|"
        "some bread and butter|the long way home|a letter from Rome|the umbrella|five brown foxes|a silver spoon|"
        "the garden gate|a jar of plum jam|the newspaper|a tiny green bird|the whole story|a piece of music|"
        "a beautiful view|the map of Oslo|a cup of tea|our bicycle|the answer|fresh fish|a new pair of shoes"
    ),
    "place": _listed(
        "by the river|in the market|at the top of the hill|behind the museum|near the bus stop|in the kitchen|"
        "under the old bridge|on the beach|at home|in a small shop|outside the opera|in the middle of the room|"
        "between two apple trees|on the balcony|in the south of Wales|among the mountains|upstairs|"
        "in front of everybody|on the way to the airport"
    ),
    "time": _listed(
        "this morning|last summer|every afternoon|before breakfast|a week ago|at about five o'clock|on Monday|"
        "when it rained|in the evening|while we were away|once upon a time|at the end of May|after a while|"
        "for the first time|all day long|tomorrow, perhaps"
    ),
    "quality": _listed(
        "warm|calm|beautiful|cheap|enormous|quiet|too loud|rather good|almost impossible|heavy|smooth|surprising|"
        "funny|worth the trouble|bigger than I thought|a bit of a problem|quite easy|wonderful"
    ),
    "aside": _listed(
        "you know|I think|to be honest|believe me|of course|well|maybe|by the way|oh|as far as I remember|"
        "if you ask me|mind you"
    ),
    "call": _listed(
        "Good morning|Hello everybody|Welcome|Oh my|Wow|Thank you very much|Please|Wait a moment|Listen|Goodbye|"
        "How do you do|Mamma mia|Bravo|Amazing|No, no, no|Aha"
    ),
    "number": _listed(
        "two|four|five|eleven|fourteen|twenty five|a hundred and one|seven thousand|nearly a million|forty"
    ),
    "unit": _listed("minutes|people|miles|pounds|boxes|pages|mushrooms|boats|steps|years|bubbles|windows"),
}

_PATTERNS = (
    "{person} {verb} {thing} {place}.",
    "{time}, {person} {verb} {thing}.",
    "{person} {verb} {thing}, and {person} {verb} {thing}.",
    "{aside}, {thing} was {quality}.",
    "{call}! {person} {verb} {thing}.",
    "do you remember how {person} {verb} {thing} {time}?",
    "why was {thing} so {quality}?",
    "it took {number} {unit}, {aside}, before {person} {verb} {thing}.",
    "{number} {unit} and {number} {unit} make a lot of {unit}.",
    "there is {thing} {place}, {place}.",
    "I would like to talk about {thing}, because it is {quality}.",
    "{call}. {call}.",
    "we saw {thing}, {thing} and {thing}.",
    "what a {quality} day! {person} will meet us {place}.",
    "imagine {thing} {place}: it must be {quality}.",
    "{person} said that {thing} was {quality}, but {person} never {verb} {thing}.",
    "nobody {verb} {thing} {place} {time}.",
    "{aside}, {aside}, it is not {quality} at all.",
)

_ONSETS = _listed("m|b|p|m|b|p|v|f|w|n|d|t|l|r|s|sh|k|g|h|y|j|br|pl|sm|tr")
_VOWELS = _listed("a|a|a|i|i|u|u|o|e|o|ai|au|ei")
_CODAS = ("", "", "", "", "m", "n", "l", "s", "p")


def sentence(rng: np.random.Generator) -> str:
    """An English sentence with its first letter in capitals and its stop."""

    def pick(match: re.Match[str]) -> str:
        return str(rng.choice(_WORDS[match.group(1)]))

    text = re.sub(r"{(\w+)}", pick, str(rng.choice(_PATTERNS)))
    return text[0].upper() + text[1:]


def babble(rng: np.random.Generator) -> str:
    """A phrase of two to seven made-up words, rich in lips that close, open, spread and round."""
    words = []
    for _ in range(int(rng.integers(2, 8))):
        syllables = [
            str(rng.choice(_ONSETS)) + str(rng.choice(_VOWELS)) + str(rng.choice(_CODAS))
            for _ in range(int(rng.integers(1, 4)))
        ]
        words.append("".join(syllables))
    return " ".join(words).capitalize() + str(rng.choice([".", "?", "!", ","]))
