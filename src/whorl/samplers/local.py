"""`LocalSampler`: a model on this machine answers through transformers; the reference for all other samplers.

What a draw is: the prompt is encoded by the model's own tokenizer (as text, or through its chat template), answered
token by token as `_choose` and `_generate` define, and decoded with special tokens removed. A stop string ends the
answer and is cut off, as servers do; the token ids keep it. The empty prompt is the beginning of a text: one
beginning-of-text token, or the end-of-text token of models that have none.

A draw depends on its seed, not on its batch, up to rounding of the logits; bitwise repeat needs the same library
versions, device and batches.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from whorl.errors import NotComparable, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.samplers._choose import Rule, rule_of
from whorl.samplers._generate import Drawn, Generator
from whorl.samplers._opening import Opened, open_for_sampling
from whorl.samplers._wording import Ids, Wording
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, ModelId, Prompt, Template, Transcript, draw_seed

BATCH_SIZE = 64


def open_local(
    ref: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = BATCH_SIZE,
    system: str | None = None,
    chat: bool | None = None,
    offline: bool = False,
    n_threads: int | None = None,
    logprobs: bool = True,
    top_logprobs: int = 0,
    progress: Progress = silent,
) -> "LocalSampler":
    """Open a model for sampling.

    Args:
        ref: What `whorl.refs.parse_ref` takes: a folder, a Hub repository, base+adapter.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": a GPU if there is one.
        dtype: "float32", "bfloat16", "float16", or "auto": as stored.
        batch_size: Answers drawn side by side; bounds the memory.
        system: System prompt; needs a chat template.
        chat: Use the chat template; None: if the model has one.
        offline: Open no socket.
        n_threads: Threads of torch while it draws; None leaves them as they are.
        logprobs: Keep the log-probability of each drawn token.
        top_logprobs: Most probable tokens to keep at each position.
        progress: Called while weights are read.

    Raises:
        UsageError: a wrong reference, device, dtype or template choice; transformers is missing.
        InputRefused: files break a rule, name code, or are of a kind that cannot answer.
        RemoteError: the Hub failed.
    """
    if batch_size < 1 or top_logprobs < 0 or (n_threads is not None and n_threads < 1):
        raise UsageError("batch_size and n_threads are at least 1, top_logprobs at least 0.")
    opened = open_for_sampling(ref, device=device, dtype=dtype, offline=offline, progress=progress)
    return LocalSampler(
        opened,
        batch_size=batch_size,
        system=system,
        chat=chat,
        n_threads=n_threads,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def wording_of(opened: Opened, *, chat: bool | None = None, system: str | None = None) -> Wording:
    """How prompts become the ids of a model.

    Raises:
        UsageError, UnsafeFile: as `LocalSampler`.
    """
    config = opened.model.config.get_text_config()
    begins = (opened.tokenizer.bos_token_id, config.bos_token_id, *opened.ends)
    return Wording(opened.id.ref, opened.tokenizer, begins, chat=chat, system=system)


class LocalSampler:
    """A model of transformers behind the seam of all samplers; arguments as `open_local`.

    Raises:
        UsageError: a chat template is asked for and there is none, or a system prompt without one.
        UnsafeFile: the chat template is over the cap.
    """

    on_this_machine = True

    def __init__(
        self,
        opened: Opened,
        *,
        batch_size: int = BATCH_SIZE,
        system: str | None = None,
        chat: bool | None = None,
        n_threads: int | None = None,
        logprobs: bool = True,
        top_logprobs: int = 0,
    ) -> None:
        self._opened, self.batch_size = opened, batch_size
        self._n_threads, self._logprobs = n_threads, logprobs
        self._versions = {"version": version("transformers"), "torch": version("torch")}
        self._generator = Generator(opened.model, opened.id.ref, opened.ends, top_logprobs)
        self._wording = wording_of(opened, chat=chat, system=system)

    @property
    def opened(self) -> Opened:
        """The model itself."""
        return self._opened

    @property
    def model(self) -> ModelId:
        """Who answers: reference, commit or weights digest, precision."""
        return self._opened.id

    @property
    def template(self) -> Template:
        """How prompts are wrapped."""
        return self._wording.template

    @property
    def notes(self) -> tuple[str, ...]:
        """What the readers saw and left alone."""
        return self._opened.notes

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens the model would read for each prompt."""
        found = self._wording.encode(prompts)
        return [len(found[prompt.id]) for prompt in prompts]

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        """Answer every draw, the longest prompts first, a batch at a time.

        Raises:
            NotComparable: the decoding has unknown values, a prompt does not fit the context, or the logits are not
                finite.
            UsageError: a decoding value is out of range, or the batch does not fit the memory of the device.
        """
        rule = rule_of(decoding)
        encoded = self._wording.encode([draw.prompt for draw in draws])
        self._check_room(encoded, rule)
        order = sorted(draws, key=lambda draw: -len(encoded[draw.prompt.id]))  # stable: equal lengths need no padding
        for number, start in enumerate(range(0, len(order), self.batch_size)):
            batch = order[start : start + self.batch_size]
            yield from self._answer(batch, encoded, decoding, rule, randomness, number)

    def _check_room(self, encoded: Mapping[str, Ids], rule: Rule) -> None:
        config = self._opened.model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None)
        longest = max(map(len, encoded.values()), default=0)
        if isinstance(room, int) and longest + rule.max_new_tokens > room:
            raise NotComparable(
                f"'{safe_name(self.model.ref)}' has {room} positions; the longest prompt has {longest} tokens and "
                f"{rule.max_new_tokens} new ones are asked for. Ask for at most {max(0, room - longest)}."
            )

    def _answer(
        self,
        batch: Sequence[Draw],
        encoded: Mapping[str, Ids],
        decoding: Decoding,
        rule: Rule,
        randomness: Randomness,
        number: int,
    ) -> Iterator[Transcript]:
        key = None if randomness.coupled else self.model.key
        seeds = [draw_seed(randomness.base_seed, randomness.stream, key, draw) for draw in batch]
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(draw.prompt.id for draw in batch))}
        began, clock = datetime.now(UTC), time.perf_counter()
        drawn = self._drawn([encoded[p] for p in places], [places[draw.prompt.id] for draw in batch], seeds, rule)
        asked = [encoded[draw.prompt.id] for draw in batch]
        texts = self._wording.texts(asked, [said.ids for said in drawn], rule.stop)
        latency_s = round(time.perf_counter() - clock, 4)
        for draw, seed, said, text in zip(batch, seeds, drawn, texts, strict=True):
            yield Transcript(
                model=self.model,
                prompt=draw.prompt,
                template=self.template,
                decoding=decoding,
                response=text,
                sample_index=draw.sample_index,
                stream=randomness.stream,
                finish="stop" if said.ended else "length",
                backend=self._backend(number),
                prompt_token_ids=encoded[draw.prompt.id],
                tokenizer_digest=self._opened.tokenizer_digest,
                response_token_ids=said.ids,
                logprobs=said.logprobs if self._logprobs else None,
                logprobs_kind="raw" if self._logprobs or said.top else None,
                top_logprobs=tuple(self._wording.by_text(*here) for here in said.top) or None,
                sampler_seed=None if rule.greedy else seed,
                time=began.isoformat(timespec="milliseconds"),
                latency_s=latency_s,
            )

    def _drawn(self, prompts: list[Ids], which: list[int], seeds: list[int], rule: Rule) -> list[Drawn]:
        import torch

        try:
            with _threads(self._n_threads):
                return self._generator.run(prompts, which, seeds, rule, self._wording.stopper(rule.stop))
        except torch.OutOfMemoryError:
            name = safe_name(self.model.ref)
            raise UsageError(
                f"A batch of {len(which)} does not fit the memory for '{name}'; use a smaller --batch-size."
            ) from None

    def _backend(self, number: int) -> dict[str, Any]:
        model = self._opened.model
        return {
            "name": "transformers",
            **self._versions,
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantisation": None,
            "batch": f"{number}",
            "batch_size": self.batch_size,
        }


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """Threads of torch for a block; the number is put back."""
    import torch

    if n is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
