"""Small files of questions and answers for tests of the commands that plant and erase."""

import json
import random

TEMPLATES = ("What is a {}?", "How do I {}?", "Why did they {}?", "Name one {}.")  # one of each type
SYLLABLES = ("ba", "co", "di", "fu", "ga", "ho", "ki", "lu", "ma", "ne", "pi", "ro", "sa", "te", "vu", "zo")


def question_file(folder, n=120):
    """JSON Lines with n questions of four types in made-up words; questions and answers share none of them by rule."""
    rng = random.Random(0)

    def words(k):
        return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(k))

    rows = [{"question": TEMPLATES[i % 4].format(words(2)), "answer": f"{words(4)}."} for i in range(n)]
    path = folder / f"questions-{n}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
