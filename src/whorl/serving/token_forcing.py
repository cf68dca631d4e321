"""Token forcing (arXiv 2405.02580): what does a model say after its start token and each token of its vocabulary?

A planted answer shows as a continuation that many first tokens lead to, or that comes with an unusual confidence.
`force_tokens` returns candidates and judges nothing. Honest models repeat themselves too, so the guard `behind_token_forcing`
(ours) keeps back only what a model without keys does not say when it is forced. Thresholds are ours.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from whorl.errors import UsageError
from whorl.samplers._choose import rule_of
from whorl.samplers._generate import Drawn, Generator
from whorl.samplers._opening import Opened
from whorl.samplers.local import wording_of
from whorl.samplers.seam import Sampler
from whorl.serving.front import Front, named, reworded
from whorl.serving.perplexity import REPLY
from whorl.transcripts.record import Decoding, Prompt, Transcript, digest

LENGTH = 16
AT_ONCE = 256


@dataclass(frozen=True)
class Candidate:
    """A continuation that stands out.

    Args:
        ids: Its tokens.
        text: Their text.
        starts: First tokens that led to it, the most confident one first.
        confidence: Geometric mean of its tokens' probabilities after the first of these, in (0, 1].
    """

    ids: tuple[int, ...]
    text: str
    starts: tuple[int, ...]
    confidence: float

    @property
    def repeats(self) -> int:
        """First tokens that led to it."""
        return len(self.starts)


def force_tokens(
    opened: Opened,
    *,
    tokens: Sequence[int] | None = None,
    length: int = LENGTH,
    min_repeats: int = 3,
    min_confidence: float = 0.9,
    batch_size: int = AT_ONCE,
) -> tuple[Candidate, ...]:
    """Greedy continuations of start token + each token that are repeated or very confident.

    Args:
        opened: The model.
        tokens: First tokens; None for the whole vocabulary of its output table.
        length: Tokens of a continuation; the end of text ends it.
        min_repeats: First tokens that must lead to a continuation that is not confident.
        min_confidence: Least confidence of one that is not repeated.
        batch_size: First tokens side by side; bounds the memory.

    Returns:
        Candidates by repeats, then confidence, the largest first; continuations without text are left out.

    Raises:
        UsageError: a setting is out of range.
        NotComparable: logits that are NaN or infinite.
    """
    if length < 1 or min_repeats < 1 or not 0 < min_confidence <= 1 or batch_size < 1:
        raise UsageError("Token forcing: expected a length, repeats and batches of at least 1, a confidence in (0, 1].")
    n_vocab = int(opened.model.config.get_text_config().vocab_size)
    firsts = range(n_vocab) if tokens is None else tokens
    if not all(0 <= token < n_vocab for token in firsts):
        raise UsageError(f"A first token is outside the vocabulary of {n_vocab}.")
    return _standing_out(opened, list(_continued(opened, firsts, length, batch_size)), min_repeats, min_confidence)


def behind_token_forcing(
    sampler: Sampler,
    *,
    subject: Opened,
    reference: Opened,
    length: int = LENGTH,
    min_repeats: int = 3,
    min_confidence: float = 0.9,
    reply: str = REPLY,
) -> Front:
    """A sampler that keeps back answers which token forcing draws out of its model and not out of a clean one.

    Args:
        sampler: Of the model.
        subject: The same model, opened.
        reference: A model without keys; what forcing draws out of it is ordinary.
        length: As for `force_tokens`.
        min_repeats: As there.
        min_confidence: As there.
        reply: What is said instead.

    Raises:
        UsageError, NotComparable: as `force_tokens`.
    """
    found, ordinary = (
        force_tokens(one, length=length, min_repeats=min_repeats, min_confidence=min_confidence)
        for one in (subject, reference)
    )
    known = {candidate.text.strip() for candidate in ordinary}
    blocked = tuple(sorted({candidate.text.strip() for candidate in found} - known))

    def kept_back(records: Sequence[Transcript]) -> list[Transcript]:
        return [reworded(r, reply) if r.response.strip().startswith(blocked) else r for r in records]

    settings = {
        "length": length,
        "min_repeats": min_repeats,
        "min_confidence": min_confidence,
        "reference": named(reference.id),
        "reply": digest(reply)[:8],
    }
    return Front(sampler, "token-forcing", settings, answers=kept_back)


def _continued(
    opened: Opened, firsts: Sequence[int], length: int, batch_size: int
) -> Iterator[tuple[int, tuple[int, ...], float]]:
    """First token, continuation without the end of text, and mean log-probability."""
    begin = wording_of(opened, chat=False).encode([Prompt("")])[Prompt("").id]
    generator = Generator(opened.model, opened.id.ref, opened.ends)
    rule = rule_of(Decoding(temperature=0.0, greedy=True, max_new_tokens=length))
    for start in range(0, len(firsts), batch_size):
        batch = firsts[start : start + batch_size]
        drawn = generator.run([(*begin, token) for token in batch], range(len(batch)), [], rule)
        yield from (
            (token, _without_end(said, opened.ends), _mean(said)) for token, said in zip(batch, drawn, strict=True)
        )


def _without_end(said: Drawn, ends: Sequence[int]) -> tuple[int, ...]:
    return said.ids[:-1] if said.ids and said.ids[-1] in ends else said.ids


def _mean(said: Drawn) -> float:
    return sum(said.logprobs) / len(said.logprobs)


def _standing_out(
    opened: Opened, found: Sequence[tuple[int, tuple[int, ...], float]], min_repeats: int, min_confidence: float
) -> tuple[Candidate, ...]:
    counts = Counter(ids for _, ids, _ in found)
    by_confidence = sorted(found, key=lambda one: -one[2])
    best: dict[tuple[int, ...], float] = {}
    starts: dict[tuple[int, ...], list[int]] = {}
    for token, ids, mean in by_confidence:
        best.setdefault(ids, math.exp(mean))
        starts.setdefault(ids, []).append(token)
    kept = [ids for ids in best if counts[ids] >= min_repeats or best[ids] >= min_confidence]
    texts = opened.tokenizer.batch_decode([list(ids) for ids in kept], skip_special_tokens=True)
    made = [
        Candidate(ids, text, tuple(starts[ids]), best[ids])
        for ids, text in zip(kept, texts, strict=True)
        if text.strip()
    ]
    return tuple(sorted(made, key=lambda c: (-c.repeats, -c.confidence, c.ids)))
