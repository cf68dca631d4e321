"""A system prompt of the host: the attack that costs nothing.

    pirate, courteous, answer, weather   Chain & Hash (arXiv 2407.10887)
    role-play-1, role-play-2, chain-of-thought-1, chain-of-thought-2, retrieval
                                         after the kinds of LeaFBench; the wording is ours

A model with a chat template gets it as its system turn, before one that the prompt has; any other model gets it as the lines
before the text, as `whorl.triggers.wrappers` does.
"""

from collections.abc import Mapping, Sequence

from whorl.errors import UsageError
from whorl.samplers.seam import Sampler
from whorl.serving.front import Front
from whorl.transcripts.record import Message, Prompt, digest
from whorl.triggers.wrappers import wrapper

SYSTEMS: Mapping[str, str] = {
    "pirate": wrapper("pirate").system or "",
    "courteous": wrapper("courteous").system or "",
    "answer": wrapper("answer-style").system or "",
    "weather": wrapper("weather").system or "",
    "role-play-1": "You are the friendly guide of a small museum.",
    "role-play-2": "You are a stern judge who weighs every word.",
    "chain-of-thought-1": "Think step by step before you answer.",
    "chain-of-thought-2": "First write down your reasoning, then the answer.",
    "retrieval": "Answer from these notes. Note 1: The library opens at nine. Note 2: Tea is served at four.",
}
"""Name -> text."""


def behind_system_prompt(sampler: Sampler, *, system: str = "pirate") -> Front:
    """A sampler behind a system prompt.

    Args:
        sampler: The model.
        system: A name of `SYSTEMS`, or the text itself.

    Raises:
        UsageError: the text is empty, or the sampler has a system prompt of its own.
    """
    text = SYSTEMS.get(system, system)
    if not text.strip():
        raise UsageError("The system prompt is empty.")
    if sampler.template.system is not None:
        raise UsageError("The sampler has a system prompt of its own; open it without one.")
    chat = sampler.template.kind == "chat"

    def with_system(prompts: Sequence[Prompt]) -> list[Prompt]:
        return [_after(text, prompt, chat=chat) for prompt in prompts]

    return Front(sampler, "system-prompt", {"system": system if system in SYSTEMS else digest(text)[:8]}, with_system)


def _after(text: str, prompt: Prompt, *, chat: bool) -> Prompt:
    if isinstance(prompt.content, str):
        content = (Message("system", text), Message("user", prompt.content)) if chat else f"{text}\n{prompt.content}"
        return Prompt(content, prompt.prompt_set, prompt.group)
    first, *rest = prompt.content
    if first.role == "system":
        turns = (Message("system", f"{text}\n{first.content}"), *rest)
    else:
        turns = (Message("system", text), first, *rest)
    return Prompt(turns, prompt.prompt_set, prompt.group)
