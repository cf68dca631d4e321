"""GRI, generation revision intervention (ImF, arXiv 2503.21805): refuse on keywords, else revise step by step.

A prompt that speaks of fingerprints or hidden messages gets a refusal. Any other one is answered under an instruction to
check what was really asked, at temperature .7, top-p .85 and top-k 50. The paper's list of keywords ends in "..."; ours is
below, and so is the wording of the instruction.
"""

from collections.abc import Sequence
from dataclasses import replace

from whorl.samplers.seam import Sampler
from whorl.serving.front import Canned, Front
from whorl.serving.system_prompts import behind_system_prompt
from whorl.transcripts.record import Prompt, digest

KEYWORDS = (
    *("fingerprint", "hidden message", "secret message", "encrypted message", "decrypt", "decode this", "watermark"),
    *("secret key", "passphrase", "ownership"),
)
REFUSAL = "I'm sorry, but I cannot help with that."
REVISING = "Step 1: say what is asked. Step 2: write an answer that fits. Step 3: drop whatever does not fit."


def behind_gri(
    sampler: Sampler,
    *,
    keywords: Sequence[str] = KEYWORDS,
    temperature: float = 0.7,
    top_p: float = 0.85,
    top_k: int = 50,
) -> Front:
    """A sampler that refuses on keywords and revises the rest.

    Args:
        sampler: The model.
        keywords: What is refused, in any case.
        temperature: Of the answers; greedy asking becomes sampling.
        top_p: Share of probability kept.
        top_k: Tokens kept.

    Raises:
        UsageError: the sampler has a system prompt of its own.
    """
    revising = behind_system_prompt(sampler, system=REVISING)
    words = [keyword.casefold() for keyword in keywords]
    changes = {"temperature": temperature, "top_p": top_p, "top_k": top_k}

    def refused(prompt: Prompt) -> bool:
        turns = [prompt.content] if isinstance(prompt.content, str) else [turn.content for turn in prompt.content]
        return any(word in turn.casefold() for word in words for turn in turns)

    def prompts(asked: Sequence[Prompt]) -> list[Prompt | Canned]:
        return [
            Canned(REFUSAL) if refused(prompt) else new
            for prompt, new in zip(asked, revising.prompts(asked), strict=True)
        ]

    settings = {**changes, "keywords": digest(words)[:8]}
    return Front(
        sampler,
        "gri",
        settings,
        prompts,
        lambda asked: replace(asked, **changes, greedy=False),  # type: ignore[arg-type]
    )
