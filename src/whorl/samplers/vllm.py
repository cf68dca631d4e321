"""`VllmSampler`: a model on this machine answers through vLLM, for more and longer answers than the reference sampler's.

Not run in this repository's tests: vLLM needs a GPU and is installed by its user. Written to its documented offline
interface: `LLM(...)`, `LLM.generate` with token ids and one `SamplingParams(seed=...)` a request. Prompts are encoded and
answers decoded as `whorl.samplers.local` does. Seeds are per request, but the low-order bits of the logits vary with what
else is in the batch, so a repeat may differ; the engine's version is in every record.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from whorl.errors import NotComparable, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.samplers._choose import Rule, rule_of
from whorl.samplers._opening import (
    checked_files,
    ends_of,
    model_id,
    read_config,
    read_tokenizer,
    stored_dtype,
    weights_digest,
)
from whorl.samplers._wording import Ids, Wording
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, ModelId, Prompt, Template, Transcript, draw_seed

AT_ONCE = 1_024  # requests handed to the engine together; an interrupt loses these


def open_vllm(
    ref: str,
    *,
    dtype: str = "auto",
    batch_size: int = AT_ONCE,
    system: str | None = None,
    chat: bool | None = None,
    offline: bool = False,
    logprobs: bool = True,
    top_logprobs: int = 0,
    progress: Progress = silent,
    **engine: Any,
) -> "VllmSampler":
    """Open a model with vLLM.

    Args:
        ref: A folder or Hub repository; adapters are merged beforehand.
        dtype: "auto", "float32", "bfloat16" or "float16".
        batch_size: Requests handed over together.
        system: System prompt; needs a chat template.
        chat: Use the chat template; None: if the model has one.
        offline: Open no socket.
        logprobs: Keep the log-probability of each drawn token.
        top_logprobs: Most probable tokens to keep at each position.
        progress: Called while weights are read.
        engine: Further arguments of `vllm.LLM` (tensor_parallel_size, gpu_memory_utilization, max_model_len, ...).

    Raises:
        UsageError: vLLM is missing, an adapter is named, or as `open_local`.
        InputRefused, RemoteError: as `open_local`.
    """
    if find_spec("vllm") is None:
        raise UsageError("This sampler needs vLLM, which needs a GPU: pip install vllm.")
    with checked_files(ref, offline=offline, progress=progress) as (opened, folder):
        if "+" in opened.resolved:
            raise UsageError("vLLM reads files itself: merge the adapter into a folder first.")
        dtype = stored_dtype(opened.source, dtype)
        weights = "" if opened.commit is not None else weights_digest(opened.source, lambda *_: None, progress)
        name = model_id(ref, opened, weights, dtype)
        tokenizer, tokenizer_digest = read_tokenizer(folder)
        config = read_config(opened)
    options = {"dtype": dtype, "load_format": "safetensors", "trust_remote_code": False, "generation_config": "vllm"}
    # Log-probabilities before all settings, as `raw` promises.
    options |= {"logprobs_mode": "raw_logprobs", "max_logprobs": max(1, top_logprobs)}
    llm = import_module("vllm").LLM(model=str(folder.root), tokenizer=str(folder.root), **(options | engine))
    ends = ends_of(folder, config, tokenizer)
    begins = (tokenizer.bos_token_id, config.get_text_config().bos_token_id, *ends)
    wording = Wording(name.ref, tokenizer, begins, chat=chat, system=system)
    n_logprobs = max(int(logprobs), top_logprobs) or None
    return VllmSampler(llm, name, wording, tokenizer_digest, ends, dtype, batch_size, n_logprobs, top_logprobs)


class VllmSampler:
    """A model in vLLM behind the seam of all samplers; made by `open_vllm`."""

    on_this_machine = True

    def __init__(
        self,
        llm: Any,
        model: ModelId,
        wording: Wording,
        tokenizer_digest: str,
        ends: Ids,
        dtype: str,
        batch_size: int,
        n_logprobs: int | None,
        n_top: int,
    ) -> None:
        self._llm, self._model, self._wording, self._ends = llm, model, wording, ends
        self._tokenizer_digest, self._n_logprobs, self._n_top = tokenizer_digest, n_logprobs, n_top
        self.batch_size = batch_size
        self._backend = {"name": "vllm", "version": version("vllm"), "dtype": dtype, "quantisation": None}

    @property
    def model(self) -> ModelId:
        """Who answers."""
        return self._model

    @property
    def template(self) -> Template:
        """How prompts are wrapped."""
        return self._wording.template

    def count_tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens the model would read for each prompt."""
        found = self._wording.encode(prompts)
        return [len(found[prompt.id]) for prompt in prompts]

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        """Answer every draw, `batch_size` requests at a time.

        Raises:
            NotComparable: unknown decoding values, or a prompt that does not fit the context.
        """
        rule = rule_of(decoding)
        encoded = self._wording.encode([draw.prompt for draw in draws])
        self._check_room(encoded.values(), rule)
        key = None if randomness.coupled else self.model.key

        def seed_of(draw: Draw) -> int:
            return draw_seed(randomness.base_seed, randomness.stream, key, draw)

        for start in range(0, len(draws), self.batch_size):
            batch = draws[start : start + self.batch_size]
            asked = [encoded[draw.prompt.id] for draw in batch]
            yield from self._answer(batch, asked, decoding, rule, randomness.stream, seed_of)

    def _check_room(self, prompts: Any, rule: Rule) -> None:
        room = int(self._llm.llm_engine.model_config.max_model_len)
        longest = max(map(len, prompts), default=0)
        if longest + rule.max_new_tokens > room:
            raise NotComparable(
                f"'{safe_name(self.model.ref)}' has {room} positions here; the longest prompt has {longest} tokens and "
                f"{rule.max_new_tokens} new ones are asked for."
            )

    def _parameters(self, rule: Rule, seed: int) -> Any:
        return import_module("vllm").SamplingParams(
            temperature=0.0 if rule.greedy else rule.temperature,
            top_p=rule.top_p,
            top_k=rule.top_k,
            min_p=rule.min_p,
            repetition_penalty=rule.repetition_penalty,
            max_tokens=rule.max_new_tokens,
            min_tokens=rule.min_new_tokens,
            stop=list(rule.stop),
            stop_token_ids=list(self._ends),
            logprobs=self._n_logprobs,
            seed=None if rule.greedy else seed,
        )

    def _answer(
        self,
        batch: Sequence[Draw],
        asked: Sequence[Ids],
        decoding: Decoding,
        rule: Rule,
        stream: str,
        seed_of: Callable[[Draw], int],
    ) -> Iterator[Transcript]:
        seeds = [seed_of(draw) for draw in batch]
        prompts = [{"prompt_token_ids": list(ids)} for ids in asked]
        began, clock = datetime.now(UTC), time.perf_counter()
        parameters = [self._parameters(rule, seed) for seed in seeds]
        found = [result.outputs[0] for result in self._llm.generate(prompts, parameters, use_tqdm=False)]
        latency_s = round(time.perf_counter() - clock, 4)
        texts = self._wording.texts(asked, [tuple(said.token_ids) for said in found], rule.stop)
        for draw, ids, seed, said, text in zip(batch, asked, seeds, found, texts, strict=True):
            yield Transcript(
                model=self.model,
                prompt=draw.prompt,
                template=self.template,
                decoding=decoding,
                response=text,
                sample_index=draw.sample_index,
                stream=stream,
                finish="stop" if said.finish_reason == "stop" else "length",
                backend=self._backend,
                prompt_token_ids=ids,
                tokenizer_digest=self._tokenizer_digest,
                response_token_ids=tuple(said.token_ids),
                **self._logs(said),
                sampler_seed=None if rule.greedy else seed,
                time=began.isoformat(timespec="milliseconds"),
                latency_s=latency_s,
            )

    def _logs(self, said: Any) -> dict[str, Any]:
        """Log-probabilities of a completion: at each position the drawn token and the most probable ones."""
        if said.logprobs is None:
            return {}
        pairs = list(zip(said.token_ids, said.logprobs, strict=True))
        top = [sorted(here.items(), key=lambda pair: -pair[1].logprob)[: self._n_top] for _, here in pairs]
        named = [self._wording.by_text([i for i, _ in here], [log.logprob for _, log in here]) for here in top]
        drawn = tuple(round(here[token].logprob, 6) for token, here in pairs)
        return {"logprobs": drawn, "logprobs_kind": "raw", "top_logprobs": tuple(named) if self._n_top else None}
