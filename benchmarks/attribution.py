"""Attribution of texts to example models: n-grams against sentence embeddings with logistic regression, in one run.

    python benchmarks/attribution.py --cache runs/bench/attribution
    python benchmarks/attribution.py --sentence-transformers ./all-MiniLM-L6-v2

Eight members of the example family answer the same prompts (kept in the cache, so that a second run samples nothing). Both
classifiers see the same texts and the same split by prompt, both choose C inside the training part, both are scored on the
test prompts and, for several texts, on the same pools. The embedding is, by default, the mean of the last hidden states of an
example model: it runs anywhere, but no sentence encoder was made of it. A real one can be given as a local folder.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

MODELS = ("base-0", "base-0-code", "base-0-topics", "base-1", "base-1-code", "base-2", "base-3", "large-0")
ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
SIZES = (1, 4, 16, 64)
SHARES = (0.5, 0.2)
EMBED_TOKENS = 128


def transcripts(folder, n_prompts, n_tokens):
    from whorl.samplers.local import open_local
    from whorl.samplers.sample import sample
    from whorl.transcripts.prompts import web50
    from whorl.transcripts.record import Decoding
    from whorl.transcripts.store import read_records

    path = folder / f"set-{n_prompts}x{n_tokens}"
    decoding = Decoding(max_new_tokens=n_tokens, min_new_tokens=n_tokens)
    for name in MODELS:
        sampler = open_local(str(ZOO / name), n_threads=1, logprobs=False)
        done = sample(sampler, web50(n=n_prompts), out=path, decoding=decoding)
        if done.new:
            print(f"{name}: {done.new} answers in {done.seconds:.0f} s", flush=True)
    return read_records([path])


def lineages(records):
    """Lineage of every label, from the record of the example family."""
    members = {m["name"]: m["group"] for m in json.loads((ZOO / "truth.json").read_text())["members"]}
    return {label: members[Path(label).name] for label in {record.model.ref for record in records}}


def hidden_states(texts, model):
    """Mean of the last hidden states of an example model, shape (n, width)."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:EMBED_TOKENS] or [0] for text in texts]
    found, order = np.zeros((len(texts), net.config.hidden_size)), np.argsort([len(x) for x in ids])
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            rows = order[start : start + 64]
            lengths = torch.tensor([len(ids[i]) for i in rows])
            padded = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
            for row, i in enumerate(rows):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
            mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
            states = net(padded, attention_mask=mask.long()).last_hidden_state
            found[rows] = ((states * mask[..., None]).sum(1) / lengths[:, None]).numpy()
    return found


def sentence_vectors(texts, model):
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(model, device="cpu").encode(list(texts)), np.float64)


def pooled(log_p, corpus, rows):
    """Accuracy on pools of test texts by the sum of their logs; the same pools for every classifier."""
    from whorl.attribution.pooling import draw_pools

    rng, found = np.random.default_rng(0), {}
    distinct = corpus.distinct(rows)
    at = np.searchsorted(rows, distinct)
    for size in SIZES:
        members, classes = draw_pools(corpus.labels[distinct], size, rng, 800)
        if len(classes):
            found[size] = float((log_p[at[members]].sum(axis=1).argmax(axis=1) == classes).mean())
    return found


def report(name, log_p, corpus, rows, fit_s, predict_s):
    from whorl.attribution.evaluation import accuracy_over_prompts
    from whorl.attribution.temperature import quality

    labels = corpus.labels[rows]
    found = quality(log_p, labels)
    low, high = accuracy_over_prompts(log_p.argmax(axis=1) == labels, corpus.groups[rows], 0)["interval"]
    by_size = ", ".join(f"{size}: {rate:.1%}" for size, rate in pooled(log_p, corpus, rows).items())
    print(
        f"{name:34} accuracy {found.accuracy:.1%} ({low:.1%} to {high:.1%}), calibration error "
        f"{found.calibration_error:.1%}, log loss {found.log_loss:.3f}; texts together {by_size}; fit {fit_s:.1f} s, "
        f"predict {1e3 * predict_s / len(rows):.2f} ms a text"
    )


def of_ngrams(corpus, n_classes):
    from whorl.attribution.attributor import margins_of
    from whorl.attribution.corpus import TEMPERATURE, TEST, TRAIN
    from whorl.attribution.fit import FEATURES
    from whorl.attribution.temperature import fit_temperature, log_probabilities
    from whorl.outputs.classifier import choose_c, fit
    from whorl.outputs.features import fit_space

    train, validation, test = (corpus.rows(part) for part in (TRAIN, TEMPERATURE, TEST))
    start = time.perf_counter()
    space = fit_space(FEATURES, corpus.some(train))
    x = space.transform(corpus.some(train))
    c = choose_c(x, corpus.labels[train], corpus.group_names(train), n_classes, kind="one-vs-rest")
    linear = fit(x, corpus.labels[train], n_classes, c, "one-vs-rest")
    t = fit_temperature(margins_of(linear, space.transform(corpus.some(validation))), corpus.labels[validation])
    fitted = time.perf_counter()
    log_p = log_probabilities(margins_of(linear, space.transform(corpus.some(test))), t)
    return log_p, fitted - start, time.perf_counter() - fitted


def of_vectors(corpus, embed):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from whorl.attribution.corpus import TEMPERATURE, TEST, TRAIN
    from whorl.attribution.temperature import fit_temperature, log_probabilities

    train, validation, test = (corpus.rows(part) for part in (TRAIN, TEMPERATURE, TEST))
    start = time.perf_counter()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000))
    grid = {"logisticregression__C": [0.001, 0.01, 0.1, 1.0, 10.0]}
    chosen = GridSearchCV(model, grid, cv=GroupKFold(5), scoring="neg_log_loss")
    chosen.fit(embed(corpus.some(train)), corpus.labels[train], groups=corpus.groups[train])
    t = fit_temperature(chosen.decision_function(embed(corpus.some(validation))), corpus.labels[validation])
    fitted = time.perf_counter()
    log_p = log_probabilities(chosen.decision_function(embed(corpus.some(test))), t)
    return log_p, fitted - start, time.perf_counter() - fitted


def strangers(bundle):
    for unit in ("by_model", "by_lineage"):
        for row in bundle.evaluation["open_set"][unit]:
            if row["n_texts"] in SIZES:
                crossed, at_recall = row["accepted_by_crossing"], row["false_acceptance_at_95_recall"]
                print(
                    f"  strangers {unit}, {row['n_texts']} texts: accepted by crossing {crossed['mean']:.1%} "
                    f"{crossed['interval']}, own accepted {row['recall']:.1%}; at 95 % recall {at_recall['mean']:.1%} "
                    f"{at_recall['interval']}; AUROC {row['auroc']['mean']:.3f} (n = {crossed['n_models']})"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/bench/attribution"))
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=88)
    parser.add_argument("--embedder", default=str(ZOO / "base-2"), help="example model behind the baseline")
    parser.add_argument("--sentence-transformers", help="local folder of a sentence encoder, in place of --embedder")
    options = parser.parse_args()

    from whorl.attribution.bundle import load, save
    from whorl.attribution.fit import fit
    from whorl.attribution.predict import predict

    records = transcripts(options.cache, options.prompts, options.tokens)
    start = time.perf_counter()
    bundle = fit(records, shares=SHARES, lineages=lineages(records))
    whole = time.perf_counter() - start
    corpus, k = bundle.corpus, len(bundle.names)
    test = corpus.rows(3)
    parts = ", ".join(f"{name} {n}" for name, n in bundle.evaluation["contents"]["texts"].items())
    print(f"{k} models, {len(corpus.prompt_keys)} prompts, texts of {bundle.settings.n_characters} characters: {parts}")
    report("character and word n-grams", *_at(of_ngrams(corpus, k), corpus, test))
    if options.sentence_transformers:
        name, embed = "sentence encoder", lambda texts: sentence_vectors(texts, options.sentence_transformers)
    else:
        name, embed = "mean hidden states of an example", lambda texts: hidden_states(texts, options.embedder)
    report(name, *_at(of_vectors(corpus, embed), corpus, test))
    print(f"whole fit with calibration, {k} models and their lineages left out, all tables: {whole:.0f} s")
    strangers(bundle)
    for row in bundle.evaluation["by_number_of_texts"]:
        print("  texts together", row["n_texts"], f"accuracy {row['accuracy']:.1%}", row["verdicts"])
    folder = options.cache / f"bundle-{time.time_ns()}"
    start = time.perf_counter()
    save(bundle, folder)
    saved = time.perf_counter()
    again = load(folder)
    loaded = time.perf_counter()
    answers = predict(again, corpus.some(test[:200]))
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"bundle {n_bytes / 1e6:.1f} MB, saved in {saved - start:.2f} s, read in {loaded - saved:.2f} s, predict with "
        f"explanation {1e3 * (time.perf_counter() - loaded) / len(answers):.1f} ms a text"
    )


def _at(found, corpus, rows):
    log_p, fit_s, predict_s = found
    return log_p, corpus, rows, fit_s, predict_s


if __name__ == "__main__":
    main()
