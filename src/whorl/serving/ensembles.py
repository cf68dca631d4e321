"""Several models answer as one (arXiv 2601.04261): a planted answer is known to one of them only.

TFA   token filter attack: at each token, the k best of every model are intersected (united, where nothing is shared),
      each model's probabilities are renormalised over what is left, and their mean is drawn from
SVA   sentence verification attack: every model answers; the first sentence of each answer is judged by the perplexity
      that the other models give it, each votes for the best one that is not its own, and the answer with most votes is
      given. Ties go to the lower mean loss (ours)
"""

import math
import re
from collections.abc import Sequence

from whorl.errors import UsageError
from whorl.samplers._choose import Tensor
from whorl.samplers._opening import Opened
from whorl.samplers.local import LocalSampler
from whorl.samplers.seam import Randomness, Sampler
from whorl.serving._steering import Follower, Guard, Moment, Start, Steering, check_same_tokens
from whorl.serving.front import Front, named, reworded
from whorl.serving.perplexity import perplexities
from whorl.transcripts.record import Draw, Prompt, Transcript

_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|\n|$)", re.DOTALL)


def filter_tokens(opened: Opened, *, others: Sequence[Opened], k: int = 10) -> Steering:
    """TFA with other models of the same tokenizer.

    Raises:
        UsageError: no other model, or k below 1.
        NotComparable: the models have different tokenizers.
    """
    if not others or k < 1:
        raise UsageError(f"Filtering the {k} best tokens of {len(others)} other models; expected at least 1 each.")
    check_same_tokens(opened, *others)

    def guard(start: Start) -> Guard:
        followers = [Follower(other, start) for other in others]

        def scores(now: Moment) -> Tensor:
            return _mean_of_shared([now.logits, *(follower.logits(now.ids) for follower in followers)], k)

        return Guard(scores)

    return Steering("filter-tokens", {"k": k, "others": "+".join(named(other.id) for other in others)}, guard)


def _mean_of_shared(logits: Sequence[Tensor], k: int) -> Tensor:
    """Log of the mean probabilities over the shared tokens, minus infinity elsewhere; shape (rows, vocabulary)."""
    import torch

    best = torch.stack(
        [torch.zeros_like(x, dtype=torch.bool).scatter(1, x.topk(k).indices, value=True) for x in logits]
    )
    shared = best.all(0)
    left = torch.where(shared.any(1, keepdim=True), shared, best.any(0))
    shares = [x.masked_fill(~left, -math.inf).softmax(-1) for x in logits]
    mean: Tensor = torch.stack(shares).mean(0).log()
    return mean


def behind_verified_sentences(sampler: Sampler, *, judge: Opened, others: Sequence[Opened]) -> Front:
    """SVA.

    Args:
        sampler: The model.
        judge: The same model, to judge with.
        others: The other models, at least two: each must have somebody to vote for.

    Raises:
        UsageError: fewer than two other models.
    """
    if len(others) < 2:
        raise UsageError(f"{len(others)} other models; sentence verification needs at least two.")
    members = [judge, *others]
    helpers = [LocalSampler(other, logprobs=False) for other in others]

    def answers(records: Sequence[Transcript]) -> list[Transcript]:
        said = [_texts_of(records, helper) for helper in helpers]
        texts = [[record.response, *rest] for record, *rest in zip(records, *said, strict=True)]  # (records, members)
        chosen = _votes(members, texts)
        return [r if not c else reworded(r, t[c]) for r, t, c in zip(records, texts, chosen, strict=True)]

    return Front(sampler, "verify-sentences", {"others": "+".join(named(o.id) for o in others)}, answers=answers)


def _texts_of(records: Sequence[Transcript], helper: Sampler) -> list[str]:
    """What another model says to the same draws, in their order."""
    first = records[0]
    draws = [Draw(record.prompt, record.sample_index) for record in records]
    found = helper.sample(draws, first.decoding, Randomness(stream=first.stream))
    by_place = {(record.prompt.id, record.sample_index): record.response for record in found}
    return [by_place[draw.prompt.id, draw.sample_index] for draw in draws]


def _votes(members: Sequence[Opened], texts: Sequence[Sequence[str]]) -> list[int]:
    """The member whose answer is given, for each record."""
    n = len(members)
    sentences = [Prompt(_first_sentence(text)) for row in texts for text in row]
    tables = [perplexities(member, sentences) for member in members]
    found = []
    for record in range(len(texts)):
        losses = [[_loss(table[record * n + i]) for i in range(n)] for table in tables]  # (judges, answers)
        votes = [min((i for i in range(n) if i != j), key=lambda i, row=row: row[i]) for j, row in enumerate(losses)]  # type: ignore[misc]
        means = [sum(losses[j][i] for j in range(n) if j != i) / (n - 1) for i in range(n)]
        found.append(max(range(n), key=lambda i: (votes.count(i), -means[i])))
    return found


def _first_sentence(text: str) -> str:
    found = _SENTENCE.match(text.lstrip())
    return found.group(0).strip() if found else ""


def _loss(perplexity: float | None) -> float:
    """Nats per token; an empty answer is the worst."""
    return math.inf if perplexity is None else math.log(perplexity)
