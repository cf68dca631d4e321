"""Seconds for one factor-replicate (3 models x 1,024 texts, 5 folds, 5 values of C) on one thread, against scikit-learn.

    OMP_NUM_THREADS=1 python benchmarks/classifiers.py [--texts answers.json] [--tokenizer folder] [--folds 5]

`answers.json` maps three models to their lists of texts, equally long; without it, the texts are pieces of a text file, and
the models differ in one word. scikit-learn's side is the plain pipeline: a vectoriser fitted on every training part, then
LogisticRegression (lbfgs) for every C on the validation split of that part, then once more on all of it. Both stop at the
tolerance they have by default, and take the seconds of their process; whorl leaves out values of C beyond the best one. The
last columns are the largest errors of the log-probabilities of the first fold at C = 1, against a solution at tolerance 1e-9.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from whorl.lab.tokenizer import load_tokenizer, train_tokenizer
from whorl.outputs.accuracy import cross_validated, folds
from whorl.outputs.classifier import CS, VALIDATION_BUCKETS, fit
from whorl.outputs.features import _WORD, CHAR_TFIDF, SUBWORD_COUNTS, WORD_TFIDF, count, weighted
from whorl.transcripts.answers import Answers
from whorl.transcripts.record import Prompt
from whorl.transcripts.splits import bucket

N_PROMPTS, N_CHARACTERS = 1_024, 350


def pieces(path):
    text = Path(path).read_text("utf-8")
    swaps = ((" the ", " the "), (" the ", " a "), (" of ", " in "))
    starts = [i * (len(text) - N_CHARACTERS) // (3 * N_PROMPTS) for i in range(3 * N_PROMPTS)]
    found = [text[at : at + N_CHARACTERS].replace(*swaps[i % 3], 1) for i, at in enumerate(starts)]
    return {f"model-{k}": found[k::3] for k in range(3)}


def table(texts):
    n = len(next(iter(texts.values())))
    prompts = tuple(Prompt(f"prompt {i}") for i in range(n))
    groups = tuple(f"group {i}" for i in range(n))
    by_draw = tuple(tuple((text,) for text in rows) for rows in texts.values())
    return Answers(tuple(texts), prompts, groups, by_draw, dict.fromkeys(texts, 0))


def vectoriser(name, tokenizer):
    """scikit-learn's equal of a preset, and what turns its counts into features."""
    if name == "char 1-4":
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, sublinear_tf=True)
    if name == "word 1-2":
        return TfidfVectorizer(token_pattern=_WORD.pattern, ngram_range=(1, 2), lowercase=False, sublinear_tf=True)
    return CountVectorizer(analyzer=lambda text: tokenizer.encode(text).tokens)


def theirs(answers, name, tokenizer, n_folds):
    texts = np.array([text for rows in answers.texts for (text,) in rows], dtype=object)
    labels = np.repeat(np.arange(3), len(answers.prompts))
    fold = np.tile(folds(answers.groups, 5), 3)
    held = np.tile([bucket(group, "choose-c") < VALIDATION_BUCKETS for group in answers.groups], 3)
    right = total = 0
    for i in range(n_folds):
        train, test = fold != i, fold == i
        one = vectoriser(name, tokenizer)
        x, y = one.fit_transform(texts[train]), one.transform(texts[test])
        if name == "sub-word":
            x, y = x.log1p(), y.log1p()
        inner, outer, known = ~held[train], held[train], labels[train]
        losses = {}
        for c in CS:
            p = LogisticRegression(C=c, max_iter=1_000).fit(x[inner], known[inner]).predict_log_proba(x[outer])
            losses[c] = -p[np.arange(len(p)), known[outer]].mean()
        said = LogisticRegression(C=min(losses, key=losses.get), max_iter=1_000).fit(x, known).predict(y)
        right, total = right + (said == labels[test]).sum(), total + len(said)
    return right / total


def errors(answers, setting, tokenizer):
    """Largest errors of log-probabilities at C = 1, ours and theirs."""
    counts = count(setting, [text for rows in answers.texts for (text,) in rows], tokenizer)
    test = np.tile(folds(answers.groups, 5) == 0, 3)
    x, labels = weighted(counts, np.flatnonzero(~test)), np.repeat(np.arange(3), len(answers.prompts))
    rows, known = x[~test].astype(np.float64), labels[~test]
    exact = fit(rows, known, 3, 1.0, tolerance=1e-9).log_probabilities(x[test])
    sklearn = LogisticRegression(C=1.0, max_iter=1_000).fit(rows, known).predict_log_proba(x[test])
    return [np.abs(found - exact).max() for found in (fit(rows, known, 3, 1.0).log_probabilities(x[test]), sklearn)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="JSON: model -> texts")
    parser.add_argument("--file", help="text file to cut into pieces")
    parser.add_argument("--tokenizer", help="model folder")
    parser.add_argument("--folds", type=int, default=5, help="folds that scikit-learn does (its time is scaled to 5)")
    given = parser.parse_args()
    texts = json.loads(Path(given.texts).read_text("utf-8")) if given.texts else pieces(given.file)
    answers = table(texts)
    sample = [text for rows in texts.values() for text in rows[::8]]
    tokenizer = load_tokenizer(Path(given.tokenizer)) if given.tokenizer else train_tokenizer(sample, 1_024)
    print(f"{'features':10}{'whorl s':>9}{'sklearn s':>11}{'accuracy':>10}{'sklearn':>9}{'error':>9}{'sklearn':>9}")
    for name, setting in {"sub-word": SUBWORD_COUNTS, "word 1-2": WORD_TFIDF, "char 1-4": CHAR_TFIDF}.items():
        start = time.process_time()
        found = cross_validated(answers, setting, tokenizer=tokenizer)
        middle = time.process_time()
        accuracy = theirs(answers, name, tokenizer, given.folds)
        seconds = middle - start, (time.process_time() - middle) * 5 / given.folds
        error = errors(answers, setting, tokenizer)
        row = f"{seconds[0]:9.1f}{seconds[1]:11.1f}{found.accuracy:10.4f}{accuracy:9.4f}{error[0]:9.1e}{error[1]:9.1e}"
        print(f"{name:10}{row}", flush=True)


if __name__ == "__main__":
    main()
