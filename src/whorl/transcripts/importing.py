"""Answers that others collected, as transcripts: JSON Lines, CSV or Parquet with a map of columns (ours).

What the file does not say stays unknown: without decoding the records carry `UNKNOWN_DECODING`, and an analysis that mixes
them with known ones needs the user's word. Repeated answers to one prompt are numbered in the order of the file.
"""

import os
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts._rows import ADVICE, table
from whorl.transcripts.codec import to_line
from whorl.transcripts.record import UNKNOWN_DECODING, Decoding, Message, ModelId, Prompt, Template, Transcript

REQUIRED = ("prompt", "response")
OPTIONAL = ("model", "group")
PROMPT_SET = "import"


def import_file(
    path: str | os.PathLike[str], columns: Mapping[str, str], label: str, decoding: Decoding | None = None
) -> list[Transcript]:
    """Transcripts of a table.

    Args:
        path: A `.jsonl`, `.json`, `.csv` or `.parquet` file.
        columns: "prompt" and "response", and if there are such "model" and "group" (of prompts that belong together),
            each with the name of its column in the file.
        label: What the model is called where the file has no model column.
        decoding: How all the answers were drawn; None if that is not known.

    Returns:
        One record a row; an empty response is an answer like any other.

    Raises:
        UsageError: a required column is not mapped, an unknown one is, or there is no such file.
        MalformedFile: a column is missing in a row, a value is no text, or the table has no rows; names the line.
    """
    for name in columns:
        if name not in REQUIRED + OPTIONAL:
            near = get_close_matches(name, REQUIRED + OPTIONAL, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" Known are {', '.join(REQUIRED + OPTIONAL)}."
            raise UsageError(f"'{safe_name(name, 40)}' is not a field of a transcript that can be imported.{hint}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise UsageError(f"Which column is the {missing[0]}? Map '{missing[0]}' to its name.")
    found: list[Transcript] = []
    counts: Counter[tuple[str, str]] = Counter()
    for where, row in table(Path(path)):
        values = _values(row, columns, Subject("table", f"{Path(path).name}: {where}"))
        record = _record(values, label, UNKNOWN_DECODING if decoding is None else decoding, counts)
        to_line(record)  # whatever cannot be kept is refused here, not when the set is written
        found.append(record)
    if not found:
        raise Subject("table", Path(path).name).malformed("no rows", "at least one answer", ADVICE)
    return found


def _values(row: Mapping[str, Any], columns: Mapping[str, str], subject: Subject) -> dict[str, Any]:
    values = {}
    for field, column in columns.items():
        if column not in row:
            raise subject.malformed(f"no column '{safe_name(column, 40)}'", f"the column of the {field}", ADVICE)
        value = _turns(row[column]) if field == "prompt" else row[column]
        usable = isinstance(value, str | tuple) and (field not in OPTIONAL or value)
        if not usable:
            found = f"no text in column '{safe_name(column, 40)}'"
            raise subject.malformed(found, f"the {field} as text", ADVICE)
        values[field] = value
    return values


def _turns(value: Any) -> Any:
    """Turns of a chat as such; anything else as it is."""
    is_chat = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    if not is_chat or not all(isinstance(turn.get(key), str) for turn in value for key in ("role", "content")):
        return value
    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def _record(values: Mapping[str, Any], label: str, decoding: Decoding, counts: Counter[tuple[str, str]]) -> Transcript:
    prompt = Prompt(values["prompt"], PROMPT_SET, values.get("group"))
    model = ModelId(values.get("model", label))
    index = counts[model.ref, prompt.id]
    counts[model.ref, prompt.id] += 1
    template = Template("raw" if isinstance(prompt.content, str) else "chat")
    return Transcript(model, prompt, template, decoding, values["response"], index, backend={"name": "import"})
