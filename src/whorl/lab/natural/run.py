"""The whole experiment: train, sample, measure, judge; each part goes on where it stopped."""

from pathlib import Path

from whorl._atomic import write_text
from whorl.errors import UsageError, safe_name
from whorl.lab.natural.answers import sample_all
from whorl.lab.natural.config import Experiment, load
from whorl.lab.natural.measure import measure
from whorl.lab.natural.results import Results, results
from whorl.lab.natural.train import train_all
from whorl.progress import Progress, silent

MAY_GROW = ("factors", "replicates")


def run(
    experiment: Experiment,
    out: Path,
    *,
    device: str = "cpu",
    as_it_is: bool = False,
    progress: Progress = silent,
) -> Results:
    """Run what is missing and judge everything.

    Args:
        experiment: The settings.
        out: Folder of the run: `models/`, `transcripts/`, `scores.jsonl`.
        device: A device of torch for training and sampling.
        as_it_is: Train and sample nothing more: factors without all their models are reported as not run.
        progress: Called with the step, what is done and what there is to do.

    Raises:
        UsageError: torch is missing, or the folder belongs to another configuration.
        NotEnoughEvidence: not one factor is complete.
    """
    _same_settings(experiment, out)
    if not as_it_is:
        train_all(experiment, out, device=device, progress=progress)
        sample_all(experiment, out, device=device, progress=progress)
    return results(experiment, out, measure(experiment, out, progress))


def _same_settings(experiment: Experiment, out: Path) -> None:
    """Keep the settings beside the results; other ones are never mixed in. Factors and replicates may grow."""
    path = out / "experiment.json"
    if not path.is_file():
        write_text(path, experiment.model_dump_json(indent=1) + "\n")
        return
    before = load(path)
    changed = [
        name
        for name in type(experiment).model_fields
        if name not in MAY_GROW and getattr(before, name) != getattr(experiment, name)
    ]
    if changed:
        raise UsageError(
            f"'{safe_name(out)}' was begun with other settings: {', '.join(changed)}. Use a new --out folder, or the "
            "settings in its experiment.json."
        )
