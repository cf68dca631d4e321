"""Measurements of a run that never was, as `scores.jsonl` holds them."""

from whorl.lab.natural.config import FACTORS, Experiment
from whorl.lab.natural.measure import ABLATIONS, CLASSIFIERS, HEADLINE


def experiment(folder):
    """Settings over a small text of its own, 60 paragraphs of distinct beginnings."""
    path = folder / "text.txt"
    path.write_text("\n\n".join(f"Number {i} is {i * 7919} of {i * 104729}, and so on. " * 60 for i in range(60)))
    sizes = {"vocabulary": 300, "window_tokens": 32, "windows": 64}
    return Experiment(text=str(path), prompts=20, control_prompts=20, unconditional=0, **sizes)


def row(accuracy, half=0.015, n_texts=3_072):
    return {
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": accuracy + half,
        "n_models": 3,
        "n_texts": n_texts,
        "confusion": [[50, 25, 25], [20, 60, 20], [30, 30, 40]],
        "cs": [1.0],
    }


def rows(accuracies=(0.45, 0.46, 0.47), c1=1 / 3):
    found = {"c2": {"key": "c2", "equal": True, "largest_difference": 0.0}}
    for name in CLASSIFIERS:
        found[f"c1|prompts|{name}|0"] = row(c1)
        for r, accuracy in enumerate(accuracies):
            found[f"c3|prompts|{name}|{r}"] = row(1 / 3)
            found[f"curve|{name}|{r}"] = {"accuracy": {"128": 0.36, "256": 0.4, "819": accuracy}}
            for factor in FACTORS:
                pooled = {"pooled": {"1": accuracy, "4": 0.6, "64": 0.98}, "losses": [2.0, 2.01, 2.05]}
                found[f"factor|prompts|{name}|{factor}|{r}"] = {**row(accuracy), **pooled}
    for r in range(len(accuracies)):
        for name in ABLATIONS:
            found[f"ablation|{name}|{HEADLINE}|{r}"] = {"retrained": row(0.4), "tested": row(0.36)}
    words = [{"text": "<b>|`x`", "log_odds": 1.0, "inside": 30.0, "outside": 10.0}]
    found["ngrams|prompts|0"] = {"models": {"baseline-0": words, "both-1-0": [], "both-2-0": []}}
    return found
