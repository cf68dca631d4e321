"""From prompts to token ids and back: what every sampler on this machine shares.

Raw prompts are encoded as the tokenizer encodes a text; conversations go through the model's chat template, which holds its
own beginning-of-text token. The empty prompt is that token alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, UsageError, safe_name
from whorl.samplers._chat import check_template, render
from whorl.transcripts.record import Prompt, Template

Ids = tuple[int, ...]


class Wording:
    """The tokenizer and chat template of one model.

    Args:
        ref: How messages call the model.
        tokenizer: Of transformers.
        begins: Token ids that may begin a text, the first that is one is taken.
        chat: Use the chat template; None: if there is one.
        system: System prompt; needs the chat template.

    Raises:
        UsageError: a chat template is asked for and there is none, or a system prompt without one.
        UnsafeFile: the chat template is over the cap.
    """

    def __init__(
        self, ref: str, tokenizer: Any, begins: Sequence[int | None], *, chat: bool | None, system: str | None
    ) -> None:
        self._ref, self._tokenizer = ref, tokenizer
        self._begin = next((token for token in begins if isinstance(token, int)), None)
        self._chat_template = self._template_text(chat, system)
        text = self._chat_template
        self.template = (
            Template() if text is None else Template("chat", hashlib.sha256(text.encode()).hexdigest(), system)
        )

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Ids]:
        """Token ids by prompt id, none empty.

        Raises:
            NotComparable: a conversation without chat template, or an empty prompt without a token to begin with.
            UsageError: a prompt with a system turn beside a system prompt.
            InputRefused: the chat template fails, or breaks a limit.
        """
        distinct = {prompt.id: prompt for prompt in prompts}
        if not distinct:
            return {}
        chat = self._chat_template is not None
        texts = self._rendered(list(distinct.values())) if chat else [_raw(prompt) for prompt in distinct.values()]
        # A rendered template holds its beginning-of-text token already.
        ids = self._tokenizer(texts, add_special_tokens=not chat, return_attention_mask=False)["input_ids"]
        return {key: tuple(found) or self._beginning() for key, found in zip(distinct, ids, strict=True)}

    def texts(self, prompts: Sequence[Ids], answers: Sequence[Ids], stop: Sequence[str]) -> list[str]:
        """Answers as text, cut before a stop string.

        Decoded behind their prompt: alone, some decoders drop a leading space, and the rest of a character that the prompt
        began would be no character.
        """
        before = self._decode([list(prompt) for prompt in prompts])
        whole = self._decode([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
        alone = self._decode([list(answer) for answer in answers])
        texts = [
            text[len(start) :] if text.startswith(start) else rest
            for start, text, rest in zip(before, whole, alone, strict=True)
        ]
        return [_cut(text, stop) for text in texts]

    def stopper(self, stop: Sequence[str]) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None:
        """Tells which answers, token ids of shape (rows, n), contain a stop string at their end."""
        if not stop:
            return None
        # A token is a byte at least; one more, because some decoders drop the first space.
        n_tail = max(len(text.encode("utf-8")) for text in stop) + 1

        def stopped(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            tails = self._decode(ids[:, -n_tail:].tolist())
            return np.array([any(text in tail for text in stop) for tail in tails], bool)

        return stopped

    def by_text(self, ids: Sequence[int], logs: Sequence[float]) -> Mapping[str, float | None]:
        """Log-probabilities by the text of tokens; tokens of one text (parts of characters) become one, with their sum."""
        sums: dict[str, float] = {}
        for token, log in zip(self._tokenizer.batch_decode([[i] for i in ids]), logs, strict=True):
            sums[token] = float(np.logaddexp(sums.get(token, -np.inf), log))
        return {token: None if log == -np.inf else round(log, 6) for token, log in sums.items()}

    # ----------------------------------------------------------------------------------------------------------------

    def _template_text(self, chat: bool | None, system: str | None) -> str | None:
        own: str | None = self._tokenizer.get_chat_template() if self._tokenizer.chat_template else None
        if chat is False and system is not None:
            raise UsageError("A system prompt needs the chat template; drop it, or drop --raw.")
        if own is None and (chat or system is not None):
            raise UsageError(f"'{safe_name(self._ref)}' has no chat template; sample the raw text (--raw).")
        if own is None or chat is False:
            return None
        check_template(own, self._ref)
        return own

    def _rendered(self, prompts: Sequence[Prompt]) -> list[str]:
        special = {k: v for k, v in self._tokenizer.special_tokens_map.items() if isinstance(v, str)}
        turns = [self._turns(prompt) for prompt in prompts]
        return render(str(self._chat_template), turns, special, self._ref)

    def _turns(self, prompt: Prompt) -> list[dict[str, str]]:
        given = prompt.to_json()
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if self.template.system is None:
            return turns
        if any(turn["role"] == "system" for turn in turns):
            raise UsageError(f"Prompt {prompt.id} has a system turn of its own; drop --system.")
        return [{"role": "system", "content": self.template.system}, *turns]

    def _beginning(self) -> Ids:
        if self._begin is None:
            name = safe_name(self._ref)
            raise NotComparable(f"'{name}' has no token for the beginning of a text: an empty prompt means nothing.")
        return (self._begin,)

    def _decode(self, ids: list[list[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts


def _raw(prompt: Prompt) -> str:
    if not isinstance(prompt.content, str):
        raise NotComparable(f"Prompt {prompt.id} is a conversation, which needs a chat template (--chat).")
    return prompt.content


def _cut(text: str, stop: Sequence[str]) -> str:
    return text[: min((place for end in stop if (place := text.find(end)) >= 0), default=len(text))]
