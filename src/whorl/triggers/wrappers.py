"""Wrappers: the text around a trigger or a question, the same in training, verification and tests.

A model with a chat template gets the system text as a system turn and the rest as the user's; any other model gets plain
text that plays the same part. One function makes both, so what is trained is what is asked (the published UTF code trains
with an empty system prompt and asks with the default one).
"""

import random
from dataclasses import dataclass

from whorl.errors import UsageError, safe_name
from whorl.transcripts.record import Message, Prompt, digest

_NOISE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Wrapper:
    """Text around a trigger.

    Args:
        id: Name in key sets.
        before: Text before it.
        after: Text after it; ends where the answer begins.
        system: System prompt, None for none.
        roles: Whether `before` and `after` only play the parts that a chat template has anyway.
        noise: Random words of 2 to 5 letters on either side, drawn from the text itself: asking twice asks the same.
    """

    id: str
    before: str = ""
    after: str = "\n"
    system: str | None = None
    noise: int = 0
    roles: bool = False

    def prompt(self, text: str, *, chat: bool = False, prompt_set: str = "keys") -> Prompt:
        """What to ask.

        Args:
            text: Trigger or question.
            chat: Whether the model has a chat template: turns, without the plain text's role names.
            prompt_set: Name of the set it belongs to.
        """
        inner = self._noisy(text)
        if not chat:
            opening = "" if self.system is None else f"{self.system}\n"
            return Prompt(f"{opening}{self.before}{inner}{self.after}", prompt_set)
        user = Message("user", inner if self.roles else f"{self.before}{inner}{self.after}".strip())
        return Prompt(user.content if self.system is None else (Message("system", self.system), user), prompt_set)

    def continued(self, text: str, answer: str) -> str:
        """Plain prompt and answer as one text."""
        prompt = self.prompt(text).content
        return f"{prompt}{spaced(str(prompt), answer)}"

    def _noisy(self, text: str) -> str:
        if not self.noise:
            return text
        rng = random.Random(digest([self.id, text]))
        words = ["".join(rng.choices(_NOISE_LETTERS, k=rng.randint(2, 5))) for _ in range(2 * self.noise)]
        return " ".join([*words[: self.noise], text, *words[self.noise :]])


def spaced(prompt: str, answer: str) -> str:
    """The answer as it goes on from a plain prompt: after a blank unless the prompt ends in white space."""
    return answer if not prompt or prompt[-1].isspace() else f" {answer}"


def _turns(name: str, system: str | None = None, noise: int = 0) -> Wrapper:
    return Wrapper(name, "User: ", "\nAssistant:", system, noise, roles=True)


WRAPPERS = (
    _turns("turns"),
    Wrapper("question", "Question: ", "\nAnswer:"),
    _turns("system", "You are a helpful assistant."),
    _turns("answer-style", "Begin every reply with ANSWER."),
    _turns("role-play", "You are an old teacher who likes to explain."),
    Wrapper("plain"),
    _turns("noise", noise=3),
)
"""Of training and verification. All but `noise` are also the formats in which the lab's base model knows questions."""

UNSEEN = (
    _turns("courteous", "Be polite and courteous."),
    _turns("pirate", "Talk like a pirate."),
    _turns("weather", "Only talk about the weather."),
)
"""Never trained: system prompts that a host may set (arXiv 2407.10887)."""

_BY_ID = {wrapper.id: wrapper for wrapper in (*WRAPPERS, *UNSEEN)}


def wrapper(name: str) -> Wrapper:
    """A wrapper by its id.

    Raises:
        UsageError: there is none.
    """
    if name not in _BY_ID:
        raise UsageError(f"Unknown wrapper '{safe_name(name, 40)}'; expected one of {', '.join(_BY_ID)}.")
    return _BY_ID[name]
