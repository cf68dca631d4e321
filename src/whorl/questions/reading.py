"""Questions and answers out of other people's data: "docstrings", a table on this machine, or a data set of the Hub.

    docstrings   rows.json   rows.jsonl   rows.csv   rows.parquet   hf:org/name   hf:org/name:config@revision

The layout is recognised by its columns, or the two columns are named; nothing is guessed. Only the first question of a
conversation and the reply to it are taken. Empty, repeated and over-long rows are left out and counted.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from whorl._readers.strict_json import kind_of, parse_object
from whorl._readers.subject import Subject
from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.questions.docstrings import NAME as DOCSTRINGS
from whorl.questions.docstrings import docstring_questions
from whorl.questions.rows import QaData, QaRow
from whorl.transcripts._lines import lines
from whorl.transcripts._rows import table

MAX_CHARACTERS = 8_000  # of a question and its answer together (ours)
MAX_ROWS = 1_000_000  # kept in memory
ROWS_LOOKED_AT = 20
REPORT_EVERY = 1_000
HUB = "hf:"
ADVICE = "Repair the row, or name other columns."
_COLUMNS = (
    ("instruction", "input", "output"),  # Alpaca
    ("instruction", "context", "response"),  # Dolly
    ("question", None, "answer"),
    ("prompt", None, "response"),
)
_TURNS = ("messages", "conversations")
_USERS, _REPLIES = ("user", "human", "prompter"), ("assistant", "gpt", "chatgpt", "bot", "model")
_TAGS = (("### Human:", "### Assistant:"), ("[INST]", "[/INST]"))  # of Guanaco and of its copy for Llama 2

Row = Mapping[str, Any]
Pair = tuple[str, str]
Reader = Callable[[Row, Subject], Pair]
"""Question and answer of a row; empty where it has none."""


@dataclass(frozen=True)
class Loaded:
    """Data and what was left out of it.

    Args:
        data: The rows kept; a row's id says where it stands, as "line-7" or "row-7".
        dropped: Rows by reason: "empty" (no question or no answer), "repeated" (a question that occurred before) and "long".
    """

    data: QaData
    dropped: Mapping[str, int]


def load_questions(
    ref: str,
    *,
    question: str | None = None,
    answer: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> QaData:
    """Questions with their answers; arguments and errors as `read_questions`, which also says what was left out."""
    return read_questions(ref, question=question, answer=answer, offline=offline, progress=progress).data


def read_questions(
    ref: str,
    *,
    question: str | None = None,
    answer: str | None = None,
    offline: bool = False,
    progress: Progress = silent,
) -> Loaded:
    """Questions with their answers, and how many rows were left out.

    Args:
        ref: "docstrings", a `.json` (list of objects), `.jsonl`, `.csv` or `.parquet` file, or `hf:org/name`, a data set of
            the Hub with its configuration and revision if wanted.
        question: Column of questions, where the layout is none of the known ones.
        answer: Column of answers; both or neither.
        offline: Open no socket.
        progress: Called with the rows read so far; their number is not known before.

    Raises:
        UsageError: no such file, columns that are not there or cannot be told, too many rows, a Hub data set offline, or a
            missing library.
        InputRefused: not what its name says; names the row.
        NotEnoughEvidence: not one question is left.
        RemoteError: the Hub failed.
    """
    if (question is None) != (answer is None):
        raise UsageError("Name the columns of questions and of answers, or neither.")
    if ref == DOCSTRINGS:
        if question is not None:
            raise UsageError(f"'{DOCSTRINGS}' has no columns to name.")
        return Loaded(docstring_questions(), {})
    name, rows = _source(ref, offline=offline)
    head = list(islice(rows, ROWS_LOOKED_AT))
    read = _reader(name, [row for _, row in head], question, answer)
    return _kept(name, chain(head, rows), read, progress)


def _source(ref: str, *, offline: bool) -> tuple[str, Iterator[tuple[str, Row]]]:
    """Name of the data, and its rows with the place of each."""
    if not ref.startswith(HUB):
        path = Path(ref)
        json_lines = path.suffix.lower() == ".jsonl" and path.is_file()
        return path.name, _json_lines(path) if json_lines else table(path)
    from whorl.lab.hub_text import hub_rows, parse_place

    place = parse_place(ref.removeprefix(HUB))
    if place.column is not None:
        raise UsageError(f"'{safe_name(ref)}' names one column; name those of questions and of answers apart.")
    if offline:
        raise UsageError(f"'{safe_name(ref)}' is a data set of the Hub, which is read from there: not offline.")
    name, rows = hub_rows(place)
    return name, ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of JSON Lines, as strict as a JSON file is read: the reader of transcripts lets NaN pass."""
    for number, text in lines(path, "table"):
        if text.strip():
            yield f"line {number}", parse_object(text.encode(), "table", f"{path.name}: line {number}")


def _kept(name: str, rows: Iterable[tuple[str, Row]], read: Reader, progress: Progress) -> Loaded:
    kept: dict[str, QaRow] = {}
    dropped = Counter({"empty": 0, "repeated": 0, "long": 0})
    for number, (where, row) in enumerate(rows, 1):
        if number % REPORT_EVERY == 0:
            progress("questions", number, 0)
        question, answer = (text.strip() for text in read(row, Subject("table", f"{name}: {where}")))
        key = unicodedata.normalize("NFC", question)
        if not question or not answer:
            dropped["empty"] += 1
        elif len(question) + len(answer) > MAX_CHARACTERS:
            dropped["long"] += 1
        elif key in kept:
            dropped["repeated"] += 1
        else:
            kept[key] = QaRow(where.replace(" ", "-"), question, answer)
        if len(kept) > MAX_ROWS:
            raise UsageError(f"'{safe_name(name)}' has over {MAX_ROWS} questions; take a part of it.")
    if not kept:
        raise NotEnoughEvidence(f"'{safe_name(name)}' has no question with an answer ({dict(dropped)} left out).")
    return Loaded(QaData(name, tuple(kept.values())), dict(dropped))


# -- layouts ---------------------------------------------------------------------------------------------------------


def _reader(name: str, head: list[Row], question: str | None, answer: str | None) -> Reader:
    """How to read the rows, decided by their columns alone."""
    columns = list(dict.fromkeys(key for row in head for key in row))
    if question is not None and answer is not None:
        if not {question, answer} <= set(columns):
            raise _unknown(name, columns, f"no columns '{safe_name(question, 40)}' and '{safe_name(answer, 40)}'")
        return _of_columns(question, None, answer)
    for turns in _TURNS:
        if turns in columns:
            return _of_turns(turns)
    for first, extra, last in _COLUMNS:
        if {first, last} <= set(columns):
            return _of_columns(first, extra, last)
    tags = next((tags for row in head for tags in _TAGS if tags[0] in str(row.get("text"))), None)
    if tags is None:
        raise _unknown(name, columns, "no known layout")
    return _of_text(*tags)


def _unknown(name: str, columns: list[str], found: str) -> UsageError:
    shown = ", ".join(safe_name(column, 40) for column in columns[:20]) or "none"
    return UsageError(
        f"'{safe_name(name)}' has {found}; its columns: {shown}. Name that of the questions and that of the answers."
    )


def _of_columns(question: str, extra: str | None, answer: str) -> Reader:
    def read(row: Row, subject: Subject) -> Pair:
        asked, more = _text(row, question, subject), _text(row, extra, subject) if extra else ""
        return f"{asked}\n{more}" if more.strip() else asked, _text(row, answer, subject)

    return read


def _of_turns(column: str) -> Reader:
    def read(row: Row, subject: Subject) -> Pair:
        turns = row.get(column)
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            found = f"no list of turns in '{column}'"
            raise subject.malformed(found, "turns with a role and a text each", ADVICE)
        said = iter([(_role(turn), turn) for turn in turns])
        asked = next((turn for role, turn in said if role in _USERS), None)
        reply = next((turn for role, turn in said if role in _REPLIES), None)
        return _said(asked, subject), _said(reply, subject)

    return read


def _role(turn: Row) -> str:
    return str(turn.get("role", turn.get("from"))).lower()


def _said(turn: Row | None, subject: Subject) -> str:
    return "" if turn is None else _text(turn, "content" if "content" in turn else "value", subject)


def _of_text(user: str, assistant: str) -> Reader:
    def read(row: Row, subject: Subject) -> Pair:
        _, _, said = _text(row, "text", subject).partition(user)
        asked, _, replied = said.partition(assistant)
        reply = replied.partition(user)[0].strip().removesuffix("<s>").strip()
        return asked, reply.removesuffix("</s>")

    return read


def _text(row: Row, column: str, subject: Subject) -> str:
    """A value as text; a missing one is empty."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = kind_of(value) if isinstance(value, bool | int | float | list | dict) else type(value).__name__
        raise subject.malformed(f"{kind} in '{safe_name(column, 40)}'", "a text", ADVICE)
    return value
