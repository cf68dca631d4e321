"""Soft evidence (ours): are the keys' answers still more probable than they were in the base, beside those of the decoys?

A greedy answer is all or nothing: an attack that makes every key miss may leave each answer ten thousand times as probable as
it was. For a model on this machine the log-probability of each key's and each decoy's answer behind its trigger is read, less
that of the clean base. For a model that knows nothing of the keys the differences of keys and decoys are exchangeable, since
one committed pool was split at random: the rank sum (Wilcoxon 1945) is exact under that null, whatever the model is.

It needs the weights of suspect and base, so it is a column of its own and never proves: a key set fixes one rule before
anybody asks, and that rule is the greedy answer. But where it stands out there is no "no match".
"""

from collections.abc import Mapping
from statistics import median

from whorl.erasure._scoring import Passage, log_probabilities
from whorl.samplers._opening import Opened
from whorl.triggers.keyset import KeySet
from whorl.triggers.nulls import rank_p
from whorl.triggers.verification import NullTest
from whorl.triggers.wrappers import wrapper
from whorl.tuning.rows import Encoder

NULL = "how much more probable an answer is than in the base does not tell keys from decoys of one committed pool"
BATCH_TOKENS = 8192


def answer_nats(opened: Opened, keys: KeySet, *, n_threads: int | None = None) -> dict[str, float]:
    """Log-probability of the first accepted answer of each key and decoy behind its trigger, nats, by id.

    Args:
        opened: The model.
        keys: Keys and decoys; asked under the first wrapper, as greedily.
        n_threads: Threads of torch; None leaves them as they are.

    Raises:
        BrokenModel: a log-probability is not finite.
        UsageError: a batch does not fit the memory of the device.
    """
    encoder = Encoder(opened)
    first, members = wrapper(keys.asking.wrappers[0]), (*keys.keys, *keys.decoys)
    prompts = [first.prompt(key.trigger, chat=encoder.chat) for key in members]
    given = encoder.prompts(prompts)
    said = encoder.text([encoder.continuing(p, key.answers[0]) for p, key in zip(prompts, members, strict=True)])
    passages = [
        Passage((*given[prompt.id], *ids), len(given[prompt.id]), key.id)
        for prompt, key, ids in zip(prompts, members, said, strict=True)
    ]
    found = log_probabilities(opened, passages, batch_tokens=BATCH_TOKENS, n_threads=n_threads)
    return dict(zip((key.id for key in members), found, strict=True))


def soft_test(suspect: Mapping[str, float], base: Mapping[str, float], keys: KeySet) -> NullTest:
    """The rank test of `answer_nats` of a suspect and of the clean base.

    Args:
        suspect: Nats by id.
        base: Nats by id.
        keys: Whose keys and decoys are compared.
    """
    gains, others = ([suspect[key.id] - base[key.id] for key in part] for part in (keys.keys, keys.decoys))
    if not others:
        return NullTest("soft", None, None, NULL, "not applicable: the key set has no decoys")
    why = (
        f"answers of {len(gains)} keys {median(gains):+.2f} nats against the base (median), "
        f"of {len(others)} decoys {median(others):+.2f}"
    )
    return NullTest("soft", rank_p(gains, others), "exact", NULL, why)
