"""Sample every model of a run under the same settings, and read its answers as balanced tables.

Two conditions: `prompts` (the first 50 characters of held-out documents, one draw each) and `unconditional` (drawn from
the beginning of a text, every draw its own group). Temperature 1, the whole softmax, exactly so many new tokens: nothing
but the model can differ.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from whorl._threads import n_cores
from whorl.errors import NotEnoughEvidence
from whorl.lab._jobs import one_thread
from whorl.lab.natural.config import Cell, Experiment, cells
from whorl.lab.natural.text import prepare
from whorl.lab.natural.train import folder_of
from whorl.progress import Progress, silent
from whorl.transcripts.answers import Answers
from whorl.transcripts.record import Decoding, Prompt, Transcript

PROMPTS = "prompts"
UNCONDITIONAL = "unconditional"
MAIN = "main"
CONTROL_STREAMS = (
    ("main", "c1-a", "c1-b"),
    ("c1-c", "c1-d", "c1-e"),
)  # C1, and its one repetition with twice the draws
BATCH = 256


@dataclass(frozen=True)
class Wanted:
    """One set to sample: a model under a condition with a sampler stream and so many draws per prompt."""

    cell: Cell
    condition: str
    stream: str = MAIN
    n_samples: int = 1


def conditions(experiment: Experiment) -> tuple[str, ...]:
    """The conditions of a run."""
    return (PROMPTS, UNCONDITIONAL) if factors_of(experiment, UNCONDITIONAL) else (PROMPTS,)


def factors_of(experiment: Experiment, condition: str) -> tuple[str, ...]:
    """Factors that are measured under a condition."""
    if condition == PROMPTS:
        return experiment.factors
    both = [f for f in experiment.factors if f in experiment.unconditional_factors]
    return tuple(both) if experiment.unconditional else ()


def decoding(experiment: Experiment) -> Decoding:
    """Temperature 1 and exactly `new_tokens` tokens, so the end of a text is suppressed."""
    return Decoding(max_new_tokens=experiment.new_tokens, min_new_tokens=experiment.new_tokens)


def wanted(experiment: Experiment, attempts: int = 1) -> list[Wanted]:
    """All sets of a run: every cell once, and the sampler-seed control of the first baseline."""
    free = cells(experiment.model_copy(update={"factors": factors_of(experiment, UNCONDITIONAL)}))
    found = [Wanted(cell, PROMPTS) for cell in cells(experiment)] + [Wanted(cell, UNCONDITIONAL) for cell in free]
    first = cells(experiment)[0]
    for attempt in range(attempts):
        for condition in conditions(experiment):
            found += [Wanted(first, condition, s, attempt + 1) for s in CONTROL_STREAMS[attempt] if s != MAIN]
    return found


def sample_all(
    experiment: Experiment, out: Path, *, attempts: int = 1, device: str = "cpu", progress: Progress = silent
) -> None:
    """Sample what is not on disk yet; an interrupted run goes on where it stopped.

    Args:
        experiment: The settings.
        out: Folder of the run, models trained.
        attempts: 2 also draws for the repetition of C1.
        device: A device of torch; on the CPU one model a core.
        progress: Called with "transcripts", sets done and sets in all.
    """
    items = [item for item in wanted(experiment, attempts) if folder_of(out, item.cell).is_dir()]
    missing = [item for item in items if not _complete(experiment, item, out)]
    progress("transcripts", len(items) - len(missing), len(items))
    if device != "cpu":
        for n_done, item in enumerate(missing, len(items) - len(missing) + 1):
            sample_one(experiment, item, out, device)
            progress("transcripts", n_done, len(items))
        return
    with ProcessPoolExecutor(n_cores(), initializer=one_thread) as pool:
        running = [pool.submit(sample_one, experiment, item, out, device) for item in missing]
        for n_done, done in enumerate(as_completed(running), len(items) - len(missing) + 1):
            done.result()
            progress("transcripts", n_done, len(items))


def sample_one(experiment: Experiment, item: Wanted, out: Path, device: str) -> None:
    """Sample one set."""
    from whorl.samplers.local import open_local
    from whorl.samplers.sample import sample
    from whorl.samplers.seam import Randomness

    sampler = open_local(
        str(folder_of(out, item.cell).absolute()), device=device, batch_size=BATCH, logprobs=False, n_threads=1
    )
    sample(
        sampler,
        _prompts(experiment, item.condition),
        out=_set_of(out, item),
        n_samples=_n_samples(experiment, item),
        decoding=decoding(experiment),
        randomness=Randomness(stream=item.stream),
    )


def table(experiment: Experiment, out: Path, chosen: Sequence[Cell], condition: str) -> Answers:
    """The answers of some cells to the same prompts; in the unconditional case every draw is a row and its own group."""
    return _answers(experiment, out, [(cell.name, Wanted(cell, condition)) for cell in chosen])


def control_table(experiment: Experiment, out: Path, condition: str, attempt: int) -> Answers:
    """C1: three streams of one checkpoint as if they were three models."""
    first = cells(experiment)[0]
    streams = CONTROL_STREAMS[attempt]
    items = [(stream, Wanted(first, condition, stream, attempt + 1)) for stream in streams]
    found = _answers(experiment, out, items)
    return found.only(range(min(experiment.control_prompts, len(found.prompts))))


def _answers(experiment: Experiment, out: Path, items: Sequence[tuple[str, Wanted]]) -> Answers:
    texts = []
    for name, item in items:
        rows = _texts(experiment, item, out)
        if rows is None:
            raise NotEnoughEvidence(f"'{name}' has no complete transcripts under '{item.condition}'; sample it first.")
        texts.append(rows)
    prompts = _prompts(experiment, items[0][1].condition)
    if items[0][1].condition == UNCONDITIONAL:
        prompts = [Prompt(prompts[0].content, prompts[0].prompt_set, str(i)) for i in range(experiment.unconditional)]
    groups = tuple(prompt.group or prompt.id for prompt in prompts)
    names = tuple(name for name, _ in items)
    return Answers(names, tuple(prompts), groups, tuple(texts), dict.fromkeys(names, 0))


def _texts(experiment: Experiment, item: Wanted, out: Path) -> tuple[tuple[str, ...], ...] | None:
    """texts[row][draw] of one set, None while something is missing."""
    records = _records(_set_of(out, item))
    found = {(record.prompt.id, record.sample_index): record.response for record in records if record.ok}
    prompts = _prompts(experiment, item.condition)
    n_samples = _n_samples(experiment, item)
    if any((prompt.id, index) not in found for prompt in prompts for index in range(n_samples)):
        return None
    if item.condition == UNCONDITIONAL:
        (prompt,) = prompts
        each = item.n_samples
        return tuple(
            tuple(found[prompt.id, row * each + draw] for draw in range(each))
            for row in range(experiment.unconditional)
        )
    return tuple(tuple(found[prompt.id, index] for index in range(n_samples)) for prompt in prompts)


def _records(folder: Path) -> list[Transcript]:
    from whorl.transcripts.store import read_records

    return read_records([folder]) if folder.is_dir() else []


def _complete(experiment: Experiment, item: Wanted, out: Path) -> bool:
    return _texts(experiment, item, out) is not None


def _n_samples(experiment: Experiment, item: Wanted) -> int:
    return item.n_samples * (experiment.unconditional if item.condition == UNCONDITIONAL else 1)


def _prompts(experiment: Experiment, condition: str) -> list[Prompt]:
    if condition == UNCONDITIONAL:
        return [Prompt("", "uncond")]
    return [Prompt(text, "web50") for text in prepare(experiment).prompts]


def _set_of(out: Path, item: Wanted) -> Path:
    return out / "transcripts" / item.condition / f"{item.cell.name}@{item.stream}"
