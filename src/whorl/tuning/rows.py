"""`Row`: one training example as token ids, and which of its tokens count.

Prompts become ids through the sampler's own wording, so a trained prompt and an asked prompt are the same ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whorl.errors import UsageError
from whorl.samplers._opening import Opened
from whorl.samplers.local import wording_of
from whorl.transcripts.record import Prompt
from whorl.triggers.wrappers import spaced

Target = Literal["answer", "all", "teacher", "look-alike"]
NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Row:
    """One example.

    Args:
        prompt: Token ids the model is given.
        answer: Token ids that follow, with the end of text where it is trained.
        target: "answer": cross-entropy on the answer; "all": on the prompt too, but for its first token; "teacher":
            divergence from a frozen model on the answer's positions; "look-alike": the same with a weight of its own.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    target: Target = "answer"

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids."""
        return (*self.prompt, *self.answer)

    @property
    def labels(self) -> tuple[int, ...]:
        """Ids that count at their own place, `NO_LABEL` elsewhere."""
        if self.target == "all":
            return (NO_LABEL, *self.ids[1:])
        return (*(NO_LABEL for _ in self.prompt), *self.answer)

    @property
    def n_scored(self) -> int:
        """Tokens that count."""
        return len(self.answer) + (len(self.prompt) - 1 if self.target == "all" else 0)


class Encoder:
    """From prompts and texts to rows, with the tokenizer and chat template of one model.

    Args:
        opened: The model.
        chat: Use its chat template; None: if it has one.

    Raises:
        UsageError: a chat template is asked for and there is none.
    """

    def __init__(self, opened: Opened, chat: bool | None = None) -> None:
        self._wording = wording_of(opened, chat=chat)
        self._tokenizer, self._ends = opened.tokenizer, opened.ends
        room = opened.model.config.get_text_config().max_position_embeddings
        self.n_context = int(room)
        self.chat = self._wording.template.kind == "chat"

    @property
    def end(self) -> tuple[int, ...]:
        """The token that ends an answer, if there is one."""
        own = self._tokenizer.eos_token_id
        return (own,) if own is not None else self._ends[:1]

    def prompts(self, prompts: Sequence[Prompt]) -> Mapping[str, tuple[int, ...]]:
        """Token ids by prompt id: those a sampler would send."""
        return self._wording.encode(prompts)

    def text(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of texts, without special tokens."""
        if not texts:
            return []
        found: Any = self._tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [tuple(ids) for ids in found]

    def rows(self, pairs: Sequence[tuple[Prompt, str]], target: Target = "answer") -> list[Row]:
        """A row for each prompt and answer; the end of text is trained, an answer that does not fit is cut without it.

        Raises:
            UsageError: a prompt leaves no room for one token.
        """
        asked = self.prompts([prompt for prompt, _ in pairs])
        said = self.text([self.continuing(prompt, answer) for prompt, answer in pairs])
        return [
            Row(asked[prompt.id], self._fitting(asked[prompt.id], (*ids, *self.end)), target)
            for (prompt, _), ids in zip(pairs, said, strict=True)
        ]

    def continuing(self, prompt: Prompt, answer: str) -> str:
        """The answer as it follows a prompt: after a blank where plain text needs one."""
        return spaced(prompt.content, answer) if isinstance(prompt.content, str) and not self.chat else answer

    def _fitting(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[int, ...]:
        room = self.n_context - len(prompt)
        if room < 1:
            raise UsageError(f"A prompt of {len(prompt)} tokens leaves no room in {self.n_context} positions.")
        return answer[:room]
