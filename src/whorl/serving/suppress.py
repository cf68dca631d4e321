"""Suppression of what a model says first (arXiv 2509.26598): a planted answer is what comes up before everything else.

    top         the k best of each of the first n tokens are not said
    neighbour   the k best first tokens, and all entries of the vocabulary that are prefixes or extensions of them, are not
                said in the first n tokens: the answer cannot come in other pieces either
    ahead       a beam search shows which tokens the likely answers share; these lose 10 logits for the first 16 tokens

The detect variants act only where the model's best token has a probability above .9: unusual confidence is the tell, and
ordinary answers are left alone. What the spec leaves open is ours: a token is shared by the beams that contain it anywhere,
the end of text is never shared, entries are compared without their leading blank.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from whorl.errors import UsageError
from whorl.samplers._choose import Tensor
from whorl.samplers._opening import Opened
from whorl.serving._steering import Guard, Moment, Start, Steering

THRESHOLD = 0.9
_BLANKS = " \u0120\u2581\u010a"  # as byte-level and SentencePiece vocabularies write blanks and line ends


def suppress_top(opened: Opened, *, k: int = 1, n: int = 1) -> Steering:
    """Drop the k best of each of the first n tokens.

    Raises:
        UsageError: k or n below 1, or k is the whole vocabulary.
    """
    _check(opened, k, n)

    def scores(now: Moment) -> Tensor:
        return now.logits if now.step >= n else now.logits.scatter(1, now.logits.topk(k).indices, -float("inf"))

    return Steering("suppress-top", {"k": k, "n": n}, lambda _: Guard(scores))


def suppress_neighbour(opened: Opened, *, k: int = 3, n: int = 1) -> Steering:
    """Ban the k best first tokens with all their prefixes and extensions for the first n tokens.

    Raises:
        UsageError: k or n below 1, or k is the whole vocabulary.
    """
    _check(opened, k, n)
    kin = Neighbours(opened.tokenizer.convert_ids_to_tokens(list(range(len(opened.tokenizer)))))

    def guard(_: Start) -> Guard:
        banned: list[Tensor] = []

        def scores(now: Moment) -> Tensor:
            if now.step >= n:
                return now.logits
            if not banned:
                banned.append(_mask(now.logits, [kin.of_all(row) for row in now.logits.topk(k).indices.tolist()]))
            return now.logits.masked_fill(banned[0], -float("inf"))

        return Guard(scores)

    return Steering("suppress-neighbour", {"k": k, "n": n}, guard)


def suppress_ahead(
    opened: Opened,
    *,
    beams: int = 10,
    length: int = 32,
    candidates: int = 12,
    frequency: float = 0.4,
    penalty: float = 10.0,
    n: int = 16,
) -> Steering:
    """Lower what the likely answers share.

    Args:
        opened: The model.
        beams: Beams, all of which are looked at.
        length: Their tokens, fewer where the context ends.
        candidates: Most tokens that are lowered.
        frequency: Least share of the beams that contain one.
        penalty: What their logits lose.
        n: First tokens of the answer for which they do.

    Raises:
        UsageError: a number out of range.
    """
    if min(beams, length, candidates, n) < 1 or not 0 <= frequency <= 1 or penalty < 0:
        raise UsageError(
            "Look-ahead: expected whole numbers of at least 1, a frequency in [0, 1], a penalty of at least 0."
        )

    def guard(start: Start) -> Guard:
        shared = [_shared(row, opened.ends, candidates, frequency) for row in _beams(start, beams, length)]
        found: list[Tensor] = []

        def scores(now: Moment) -> Tensor:
            if now.step >= n:
                return now.logits
            if not found:
                found.append(_mask(now.logits, shared))
            return now.logits - penalty * found[0]

        return Guard(scores)

    settings = {"beams": beams, "length": length, "candidates": candidates, "frequency": frequency}
    return Steering("suppress-ahead", {**settings, "penalty": penalty, "n": n}, guard)


def detect_top(opened: Opened, *, k: int = 1, n: int = 1, threshold: float = THRESHOLD) -> Steering:
    """`suppress_top` where the best token is more probable than the threshold."""
    return when_confident(suppress_top(opened, k=k, n=n), threshold)


def detect_neighbour(opened: Opened, *, k: int = 3, n: int = 1, threshold: float = THRESHOLD) -> Steering:
    """`suppress_neighbour` where the best token is more probable than the threshold."""
    return when_confident(suppress_neighbour(opened, k=k, n=n), threshold)


def detect_ahead(
    opened: Opened,
    *,
    beams: int = 10,
    length: int = 32,
    candidates: int = 12,
    frequency: float = 0.4,
    penalty: float = 10.0,
    n: int = 16,
    threshold: float = THRESHOLD,
) -> Steering:
    """`suppress_ahead` where the best token is more probable than the threshold."""
    ahead = suppress_ahead(
        opened, beams=beams, length=length, candidates=candidates, frequency=frequency, penalty=penalty, n=n
    )
    return when_confident(ahead, threshold)


def when_confident(steering: Steering, threshold: float) -> Steering:
    """A steering that acts, row by row, only where the best token is more probable than the threshold.

    Raises:
        UsageError: the threshold is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"The threshold is {threshold}; expected a probability.")

    def guard(start: Start) -> Guard:
        inner = steering.guard(start)

        def scores(now: Moment) -> Tensor:
            confident = now.logits.softmax(-1).amax(1, keepdim=True) > threshold
            return inner.scores(now).where(confident, now.logits)

        return Guard(scores, inner.tokens)

    name = steering.name.replace("suppress", "detect")
    return Steering(name, {**steering.settings, "threshold": threshold}, guard)


class Neighbours:
    """Which entries of a vocabulary are prefixes or extensions of another one.

    Args:
        entries: The entry of each id.
    """

    def __init__(self, entries: Sequence[str | None]) -> None:
        self._texts = [(entry or "").lstrip(_BLANKS) for entry in entries]
        order = sorted((text, token) for token, text in enumerate(self._texts) if text)
        self._sorted = [text for text, _ in order]
        self._tokens = [token for _, token in order]
        self._known: dict[int, frozenset[int]] = {}

    def of(self, token: int) -> frozenset[int]:
        """The token and its neighbours; one without text, or outside the vocabulary, has none."""
        if token not in self._known:
            self._known[token] = frozenset({token, *self._kin(token)})
        return self._known[token]

    def of_all(self, tokens: Sequence[int]) -> frozenset[int]:
        """Tokens with all their neighbours."""
        return frozenset().union(*map(self.of, tokens))

    def _kin(self, token: int) -> list[int]:
        text = self._texts[token] if token < len(self._texts) else ""
        prefixes = [place for end in range(1, len(text)) for place in self._places(text[:end], exact=True)]
        extensions = self._places(text, exact=False) if text else []
        return [self._tokens[place] for place in (*prefixes, *extensions)]

    def _places(self, text: str, *, exact: bool) -> list[int]:
        """Places of the entries that are a text, or begin with it."""
        start = bisect_left(self._sorted, text)
        end = start
        while end < len(self._sorted) and (self._sorted[end] == text if exact else self._sorted[end].startswith(text)):
            end += 1
        return list(range(start, end))


def _mask(logits: Tensor, tokens: Sequence[Sequence[int] | frozenset[int]]) -> Tensor:
    """True at the tokens of each row, shape of the logits."""
    import torch

    found = torch.zeros(logits.shape, dtype=torch.bool)
    for row, chosen in enumerate(tokens):
        found[row, [token for token in chosen if token < logits.shape[1]]] = True
    return found.to(logits.device)


def _beams(start: Start, beams: int, length: int) -> list[list[list[int]]]:
    """Tokens of all beams of each row; none where the context has no room."""
    from transformers import GenerationConfig

    rows, width = start.ids.shape
    length = min(length, start.room)
    if length < 1:
        return [[] for _ in range(rows)]
    ends = list(start.opened.ends) or None
    config = GenerationConfig(
        max_new_tokens=length,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=start.opened.ends[0] if ends else 0,
    )
    found = start.opened.model.generate(start.ids, attention_mask=start.mask, generation_config=config)
    answers: list[list[list[int]]] = found[:, width:].reshape(rows, beams, -1).tolist()
    return answers


def _shared(beams: Sequence[Sequence[int]], ends: Sequence[int], most: int, frequency: float) -> list[int]:
    """Tokens of at least this share of the beams, the commonest first."""
    counts = Counter(token for beam in beams for token in set(beam) - set(ends))
    common = [token for token, count in counts.items() if count >= frequency * len(beams)]
    return sorted(common, key=lambda token: (-counts[token], token))[:most]


def _check(opened: Opened, k: int, n: int) -> None:
    n_vocab = opened.model.get_output_embeddings().weight.shape[0]
    if not 1 <= k < n_vocab or n < 1:
        raise UsageError(f"Suppressing the {k} best of {n} tokens; expected at least 1 each, and fewer than {n_vocab}.")
