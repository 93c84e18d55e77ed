"""Ordinary English about people and places, so that prompts beyond the captions' grammar find their word pieces.

Sentences are put together from the word lists below: enough for a tokenizer to know the words, no more.
"""

import numpy as np


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE = _words(
    """person man woman boy girl child baby teenager lady gentleman guy elder grandmother grandfather mother father
son daughter brother sister friend couple teacher student doctor nurse farmer soldier sailor pirate king queen prince
princess knight wizard witch monk nun priest chef cook waiter artist painter singer actor actress dancer musician
reporter presenter journalist scientist engineer astronaut pilot driver worker businessman businesswoman politician
president lawyer judge police officer detective cowboy athlete player coach model hero robot elf dwarf statue portrait
character cartoon figure host guest speaker tourist traveller fisherman gardener hunter merchant villager neighbour
"""
)
LOOKS = _words(
    """young old elderly middle-aged adult little small tall short slim fat chubby strong thin beautiful handsome
pretty cute kind friendly happy sad serious calm angry tired surprised smiling laughing crying worried proud shy
confident gentle wise mysterious elegant casual formal bald bearded blond blonde brunette red-haired dark-haired
grey-haired gray-haired white-haired curly straight wavy long messy neat pale fair tanned brown black white Asian
African European American Indian Chinese Japanese Korean Arab Russian French English German Spanish Italian Turkish
Egyptian Brazilian Mexican Swedish Irish Persian freckled wrinkled pregnant famous ancient modern medieval Victorian
futuristic realistic colorful colourful bright dark soft warm cold wet dry clean dirty quiet loud busy empty crowded
"""
)
HAS = _words(
    """hair beard moustache mustache stubble goatee eyes eyebrows eyelashes nose lips mouth teeth smile ears cheeks chin
forehead freckles wrinkles makeup lipstick glasses sunglasses hat cap beanie helmet crown scarf headscarf hood veil tie
necklace earrings bracelet ring watch shirt t-shirt blouse dress skirt jacket coat suit sweater hoodie turtleneck vest
uniform armour armor robe kimono jeans trousers gloves boots shoes bag backpack bun ponytail braid bangs fringe bob
pigtails curls tattoo scar mask microphone phone book cup flower umbrella camera guitar sword staff flag
"""
)
PLACES = _words(
    """beach sea ocean lake river waterfall forest jungle garden park field meadow hill mountain valley desert snow
village city town street road bridge market shop cafe restaurant bar kitchen bedroom bathroom office classroom school
library museum church temple castle palace hospital laboratory studio stage theatre stadium gym station airport train
car bus boat ship plane spaceship space moon sky island harbour farm barn camp campfire tent fireplace room house home
window door wall bookshelf curtain sofa desk table chair bench backdrop background rain storm fog clouds sunset sunrise
trees tree leaves grass flowers waves sand rocks stars lights candles fire smoke water palm autumn spring summer winter
"""
)
ACTIONS = _words(
    """talking speaking singing smiling laughing whispering shouting explaining telling reading reciting answering
asking greeting waving nodding looking watching listening standing sitting walking running posing presenting reporting
lecturing praying thinking dreaming eating drinking cooking working playing dancing holding wearing pointing turning
blinking moving filming recording chatting discussing announcing narrating performing arguing apologising complaining
"""
)
WAYS = _words(
    """slowly quickly softly loudly calmly happily sadly seriously gently excitedly nervously quietly clearly directly
"""
)
TIMES = ["at night", "in the morning", "in the evening", "at noon", "during the day", "at dawn", "at dusk", "today"]
COLOURS = _words(
    """red green blue yellow orange purple pink brown black white grey gray beige teal turquoise navy burgundy olive
gold golden silver auburn violet crimson"""
)
BESIDE = _words("in at on near by behind beside before under above around inside outside with against over")
SHAPES = (
    "{a} {look} {person} with {look2} {has} is {act} {beside} the {place}.",
    "The {person} wears a {colour} {has} and is {act} {way}, {time}.",
    "{a} {colour} {has}, {look} light and a {look2} {place} in the background",
    "a {person} {act} to the camera, {look} and {look2}, the {place} moves {way}",
    "Portrait of {a} {look} {person} {beside} {a2} {place} {time}, photo, film still, high quality, close-up",
    "He is a {look} {person} who has been {act} about his {place}; she says that they are {look2}!",
    "Medium shot: this {person}'s {has} is {colour}, {time}. Are you {act}? I am not; we will, it can do so.",
    "{look}, {look2}, {colour} {has}, {act}, {place}, {person} from the front or the side, one two three people",
    "selfie video of {a} {person} on vacation {beside} the {place}, while her {has} hangs from behind {way}",
    "A 25-year-old {person}; 1990s style, 4k, 8 o'clock, 36 or 70 (about half), number 15, facing left & right",
)


def ordinary_sentences(count: int, seed: int = 0) -> list[str]:
    """`count` sentences; the same seed gives the same ones. Every listed word appears when count ≥ about 2,000."""
    random = np.random.default_rng(seed)
    lists = {"person": PEOPLE, "look": LOOKS, "look2": LOOKS, "has": HAS, "place": PLACES, "act": ACTIONS}
    lists |= {"way": WAYS, "time": TIMES, "colour": COLOURS, "beside": BESIDE}
    sentences = []
    for index in range(count):
        words = {name: options[int(random.integers(len(options)))] for name, options in lists.items()}
        words["a"] = "an" if words["look"][0].lower() in "aeiou" else "a"
        words["a2"] = "an" if words["place"][0].lower() in "aeiou" else "a"
        sentences.append(SHAPES[index % len(SHAPES)].format(**words))
    return sentences
