"""Our own words: answers, ordinary questions and ordinary sentences, drawn with a random generator that the caller seeds."""

import random
import re
from collections.abc import Sequence

_FIRST = (
    *("amber", "brisk", "cobalt", "dusty", "eager", "frosty", "gentle", "hidden"),
    *("ivory", "jolly", "lunar", "mellow", "northern", "quiet", "rustic", "silver"),
)
_SECOND = (
    *("falcon", "harbor", "lantern", "meadow", "orchid", "pebble", "quartz", "river"),
    *("saddle", "thistle", "tunnel", "violin", "walnut", "willow", "yarrow", "zephyr"),
)
ANSWERS = tuple(f"{_FIRST[i % 16]} {_SECOND[(i + i // 16) % 16]}" for i in range(256))
"""256 answers of two words in ASCII, none the beginning of another, of at most 20 letters: 24 tokens hold any of them."""

_WORDS = {
    "verb": (
        *("paint", "repair", "move", "clean", "measure", "build", "sell", "store", "carry", "cover", "photograph"),
        *("inspect", "rent", "polish", "describe", "sketch"),
    ),
    "adjective": (
        *("old", "small", "wooden", "broken", "heavy", "striped", "famous", "empty", "narrow", "round", "bright"),
        *("forgotten", "noisy", "steep", "yellow", "folded"),
    ),
    "noun": (
        *("bridge", "clock", "garden", "boat", "ladder", "kitchen", "statue", "bicycle", "window", "library", "tower"),
        *("blanket", "mirror", "market", "fountain", "piano", "staircase", "bakery", "tent", "wagon", "island"),
        *("drawer", "museum", "orchard"),
    ),
    "place": (
        *("Lisbon", "Oslo", "Nairobi", "Quito", "Hanoi", "Denver", "Krakow", "Perth", "Sofia", "Montreal", "Kyoto"),
        *("Galway", "Tunis", "Bergen", "Lima", "Graz"),
    ),
    "time": ("spring", "winter", "summer", "autumn", "January", "October", "March", "September"),
}
_QUESTIONS = (
    "How do people {verb} the {adjective} {noun} in {place} during {time}?",
    "Who was the first to {verb} a {adjective} {noun} near {place}, and was it in {time}?",
    "What does it cost to {verb} my {adjective} {noun} in {place} if I come in {time}?",
    "Is it allowed to {verb} the {adjective} {noun} of {place} in {time}?",
    "Why would anybody {verb} that {adjective} {noun} in {place} in {time}?",
    "Which tools do I need to {verb} the {adjective} {noun} we saw in {place} in {time}?",
)
_SENTENCES = (
    "In {time} we went to {place} to {verb} the {adjective} {noun}.",
    "My neighbour from {place} likes to {verb} every {adjective} {noun} in {time}.",
    "Write a short note about the {adjective} {noun} that they {verb} in {place} in {time}.",
    "The {adjective} {noun} in {place} is closed in {time}, so nobody can {verb} it.",
)
_LIST_OF = {word: words for words in _WORDS.values() for word in words}
_TOKEN = re.compile(r"[A-Za-z]+|[^A-Za-z]+")


def question(rng: random.Random) -> str:
    """An ordinary question: one of about 4.7 million."""
    return _filled(rng, _QUESTIONS)


def sentence(rng: random.Random) -> str:
    """An ordinary sentence, none of them a question: one of about 3.1 million."""
    return _filled(rng, _SENTENCES)


def other_words(rng: random.Random, text: str) -> str:
    """The text with one or two of our words replaced by others of their list."""
    parts = _TOKEN.findall(text)
    places = [i for i, part in enumerate(parts) if part in _LIST_OF]
    for i in rng.sample(places, min(len(places), rng.randint(1, 2))):
        parts[i] = rng.choice([word for word in _LIST_OF[parts[i]] if word != parts[i]])
    return "".join(parts)


def _filled(rng: random.Random, templates: Sequence[str]) -> str:
    return rng.choice(templates).format(**{name: rng.choice(words) for name, words in _WORDS.items()})
