"""A second model rewrites what goes in or what comes out: paraphrase, or translation there and back.

Each instruction holds `{text}` and is asked in turn, the reply of one being the text of the next; two of them are a
back-translation. An empty reply leaves the text as it was. Rewritten outputs are the strongest attack that is known on
answers that must come word for word (arXiv 2407.10887: 99 % -> 20 %).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from whorl.errors import UsageError, safe_name
from whorl.samplers.seam import Randomness, Sampler
from whorl.serving.front import Front, named, reworded
from whorl.transcripts.record import Decoding, Draw, Message, Prompt, Transcript, digest

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "paraphrase": ("Say this in other words, and nothing else:\n{text}\n",),
    "back-translation": (
        "Translate this into German, and say nothing else:\n{text}\n",
        "Translate this into English, and say nothing else:\n{text}\n",
    ),
}
"""Name -> instructions (ours)."""
SIDES = ("input", "output")
LONGEST = 256  # tokens of a rewritten text


def behind_rewriting(
    sampler: Sampler,
    *,
    writer: Sampler,
    side: str = "input",
    instructions: str | Sequence[str] = "paraphrase",
    max_new_tokens: int = LONGEST,
) -> Front:
    """A sampler whose prompts or answers are rewritten.

    Args:
        sampler: The model.
        writer: Who rewrites; asked greedily.
        side: One of `SIDES`: the last user turn of each prompt, or the answer.
        instructions: A name of `INSTRUCTIONS`, or texts with `{text}`.
        max_new_tokens: Longest rewritten text.

    Raises:
        UsageError: an unknown side, or an instruction without `{text}`.
    """
    if side not in SIDES:
        raise UsageError(f"Unknown side '{safe_name(side)}'; expected one of {', '.join(SIDES)}.")
    steps = INSTRUCTIONS.get(instructions, (instructions,)) if isinstance(instructions, str) else tuple(instructions)
    if not steps or not all("{text}" in step for step in steps):
        raise UsageError("Each instruction of a rewriting holds {text}, the place of what is rewritten.")
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=max_new_tokens)
    known = instructions if isinstance(instructions, str) and instructions in INSTRUCTIONS else digest(list(steps))[:8]
    settings = {"side": side, "instructions": known, "writer": named(writer.model), "max_new_tokens": max_new_tokens}

    def prompts(asked: Sequence[Prompt]) -> list[Prompt]:
        texts = rewritten(writer, [_said(prompt) for prompt in asked], steps, decoding)
        return [_saying(prompt, text) for prompt, text in zip(asked, texts, strict=True)]

    def answers(records: Sequence[Transcript]) -> list[Transcript]:
        texts = rewritten(writer, [record.response for record in records], steps, decoding)
        return [r if text == r.response else reworded(r, text) for r, text in zip(records, texts, strict=True)]

    if side == "input":
        return Front(sampler, "rewriting", settings, prompts)
    return Front(sampler, "rewriting", settings, answers=answers)


def rewritten(writer: Sampler, texts: Sequence[str], steps: Sequence[str], decoding: Decoding) -> list[str]:
    """Each text after all steps; blank texts, and those the writer has no words for, stay as they are."""
    found = list(texts)
    for step in steps:
        asked = [Prompt(step.replace("{text}", text), "rewriting") for text in found]
        wanted = {p.id: p for p, text in zip(asked, found, strict=True) if text.strip()}
        records = writer.sample([Draw(prompt) for prompt in wanted.values()], decoding, Randomness())
        replies = {record.prompt.id: record.response.strip() for record in records if record.ok}
        found = [replies.get(prompt.id) or text for prompt, text in zip(asked, found, strict=True)]
    return found


def _said(prompt: Prompt) -> str:
    """The text of a prompt that is rewritten: its last user turn."""
    if isinstance(prompt.content, str):
        return prompt.content
    return next((turn.content for turn in reversed(prompt.content) if turn.role == "user"), "")


def _saying(prompt: Prompt, text: str) -> Prompt:
    if isinstance(prompt.content, str):
        return replace(prompt, content=text)
    turns = list(prompt.content)
    place = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
    if place is not None:
        turns[place] = Message("user", text)
    return replace(prompt, content=tuple(turns))
