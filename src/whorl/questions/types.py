"""Types of questions: an erase set takes each answer from a question of another type.

The published rule (it reproduces 293 of the 300 labels of the released set): the first of "what", "how" and "why" that is
contained anywhere in the lower-cased question, also within a word, else "other". Word lists of other languages and the
clusters for data in which that rule tells too little are ours.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.questions.rows import QaData

TYPES = ("what", "how", "why", "other")
LEAST_SHARE = 0.05  # of the rows, in every type
N_CLUSTERS = 4
N_DIRECTIONS = 10  # of latent semantics: straight on TF-IDF vectors one cluster takes most of the rows
MAX_FEATURES = 20_000

# In these languages the word for "why" often holds that for "what" ("por qué", "为什么"): why, how, what in this order.
# A word ends where the language has blanks.
_WORDS: Mapping[str, tuple[str, str, str]] = {
    "de": ("warum|wieso|weshalb|weswegen", "wie|wieviel|womit|wodurch", "was|welche[rsmn]?|wofür|wozu"),
    "es": ("por qué|para qué", "cómo|cuánt[oa]s?|de qué manera", "qué|cuál|cuáles"),
    "fr": ("pourquoi", "comment|combien", "quoi|quel|quelle|quels|quelles|que|qu['’]est"),
    "it": ("perché|come mai", "come|quant[oaie]", "cosa|che|quale|quali"),
    "pt": ("por que|por quê|porque|porquê", "como|quant[oa]s?", "o que|quê|qual|quais"),
    "ru": ("почему|зачем|отчего", "как|каким образом|сколько", "что|какой|какая|какое|какие"),
    "ja": ("なぜ|何故|どうして", "どうやって|どのように|どうすれ|いかに", "何|なに|どんな|どれ"),
    "zh": ("为什么|为何|为啥|為什麼|為何", "怎么|怎样|如何|怎麼|怎樣", "什么|什麼|哪|何"),
}
_NO_BLANKS = ("ja", "zh")
LANGUAGES = ("en", *_WORDS)

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
TERMS = rf"(?u)[{_CJK}]|[^\W{_CJK}]{{2,}}"
"""Terms of a text: words of two letters or more, and single characters of scripts without blanks."""


@dataclass(frozen=True)
class Types:
    """The type of every row.

    Args:
        names: "what", "how", "why" or "other", or "cluster-0" to "cluster-3"; in the order of the rows.
        rule: "words", or "clusters" where a type of the words had under 5 % of the rows.
    """

    names: tuple[str, ...]
    rule: Literal["words", "clusters"]

    @property
    def counts(self) -> dict[str, int]:
        """Rows of each type, also of those without any."""
        known = TYPES if self.rule == "words" else tuple(f"cluster-{i}" for i in range(N_CLUSTERS))
        found = Counter(self.names)
        return {name: found[name] for name in known}


def question_type(text: str, languages: Sequence[str] = ("en",)) -> str:
    """The type of a question by its words: "what", "how", "why" or "other".

    Args:
        text: The question.
        languages: Whose word lists are tried, in this order; the first that finds one decides. "en" is the published rule.

    Raises:
        UsageError: no list for a language.
    """
    lowered = unicodedata.normalize("NFC", text).lower()
    found = (_found(lowered, language) for language in languages)
    return next((kind for kind in found if kind), "other")


def types_of(data: QaData, seed: int = 0, languages: Sequence[str] = ("en",)) -> Types:
    """The type of every row: by words, or four clusters of the questions where a type has under 5 % of the rows.

    Args:
        data: Questions.
        seed: Of the clusters.
        languages: As `question_type`.

    Raises:
        UsageError: no list for a language.
        NotEnoughEvidence: too few different questions for clusters.
    """
    words = Types(tuple(question_type(row.question, languages) for row in data.rows), "words")
    if min(words.counts.values()) >= LEAST_SHARE * len(data):
        return words
    return Types(_clusters(data, seed), "clusters")


def vectors(texts: Sequence[str]) -> Any:
    """TF-IDF vectors of length 1, shape (texts, terms), sparse; a text without any known term is zero."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(token_pattern=TERMS, sublinear_tf=True, max_features=MAX_FEATURES).fit_transform(texts)


def _found(lowered: str, language: str) -> str | None:
    if language == "en":
        return next((word for word in TYPES[:3] if word in lowered), None)
    if language not in _WORDS:
        raise UsageError(f"No words for language '{safe_name(language, 40)}'; expected some of {', '.join(LANGUAGES)}.")
    for kind, words in zip(("why", "how", "what"), _WORDS[language], strict=True):
        if re.search(words if language in _NO_BLANKS else rf"\b(?:{words})\b", lowered):
            return kind
    return None


def _clusters(data: QaData, seed: int) -> tuple[str, ...]:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    from whorl._threads import single_threaded

    texts = [row.question for row in data.rows]
    terms = re.compile(TERMS)
    if len({frozenset(terms.findall(text.lower())) for text in texts} - {frozenset()}) < 2 * N_DIRECTIONS:
        raise NotEnoughEvidence(
            f"'{safe_name(data.name)}' has {len(texts)} questions, too few to tell types apart; "
            f"at least {2 * N_DIRECTIONS} that differ in their words are needed."
        )
    with single_threaded():
        found = vectors(texts)
        n_directions = min(N_DIRECTIONS, found.shape[1] - 1)
        semantic = normalize(TruncatedSVD(n_directions, random_state=seed).fit_transform(found))
        labels = KMeans(N_CLUSTERS, n_init=10, random_state=seed).fit_predict(semantic)
    return tuple(f"cluster-{label}" for label in labels)
