"""Questions about Python's standard library, answered by its own docstrings and signatures: on every machine.

Four kinds of question a function or class: what it does (first paragraph of its docstring), how it is called (its
signature), why it raises or behaves so (a sentence that gives a reason), and which arguments it takes. The wording of the
answers is that of the library, so it depends on the Python version: results name the data by its digest.
"""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from whorl.lab.corpus import library_files
from whorl.questions.rows import QaData, QaRow

NAME = "docstrings"
LONGEST_ANSWER = 240  # characters; longer first paragraphs are cut after a sentence or left out
SHORTEST_ANSWER = 12
_WHAT = ("What does {name} do?", "What is {name} for?", "Tell me what {name} does.")
_HOW = ("How do I call {name}?", "How is {name} used?", "Show how to write a call of {name}.")
_WHY = ("Why does {name} behave so?", "Why is that so with {name}?", "Why should I care about {name}?")
_OTHER = ("Which arguments does {name} take?", "List the parameters of {name}.", "Name the arguments of {name}.")
_REASON = re.compile(r"\b(because|since|so that|in order to|therefore|raise[sd]?|otherwise|unless)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@lru_cache(maxsize=1)
def docstring_questions() -> QaData:
    """All questions about the standard library of this Python.

    Raises:
        MalformedFile: the interpreter came without the library's source files.
    """
    rows: dict[str, QaRow] = {}
    for module, path in _modules():
        for name, node in _definitions(module, ast.parse(path.read_bytes())):
            for question, answer in _asked(name, node):
                if question not in rows and SHORTEST_ANSWER <= len(answer) <= LONGEST_ANSWER:
                    rows[question] = QaRow(f"doc-{len(rows):06d}", question, answer)
    return QaData(NAME, tuple(rows.values()))


def _modules() -> Iterator[tuple[str, Path]]:
    root, files = library_files()
    for path in files:
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _definitions(prefix: str, node: ast.AST) -> Iterator[tuple[str, Definition]]:
    """Documented classes and functions with their dotted names; private ones are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition) and not child.name.startswith("_"):
            name = f"{prefix}.{child.name}"
            if ast.get_docstring(child):
                yield name, child
            if isinstance(child, ast.ClassDef):
                yield from _definitions(name, child)


def _asked(name: str, node: Definition) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node) or ""
    short = ".".join(name.split(".")[-2:])
    which = sum(map(ord, name)) % 3  # one wording a name, spread evenly
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    yield _WHAT[which].format(name=short), _first_sentences(paragraphs[0])
    arguments = _arguments(node)
    if arguments is not None:
        yield _HOW[which].format(name=short), f"{short}({ast.unparse(arguments)})"
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        if names:
            yield _OTHER[which].format(name=short), f"{short} takes {', '.join(names)}."
    reason = next((s for p in paragraphs for s in _SENTENCE.split(p)[:12] if _REASON.search(s)), None)
    if reason is not None:
        yield _WHY[which].format(name=short), reason


def _first_sentences(paragraph: str) -> str:
    """As many whole sentences as fit; empty when not even one does."""
    kept = ""
    for sentence in _SENTENCE.split(paragraph):
        if len(kept) + len(sentence) + 1 > LONGEST_ANSWER:
            break
        kept = f"{kept} {sentence}" if kept else sentence
    return kept


def _arguments(node: Definition) -> ast.arguments | None:
    """Arguments as a caller sees them: of a class those of its `__init__`, without `self` and annotations."""
    if isinstance(node, ast.ClassDef):
        found = next((c for c in node.body if isinstance(c, ast.FunctionDef) and c.name == "__init__"), None)
    else:
        found = node if isinstance(node, ast.FunctionDef) else None
    if found is None:
        return None
    arguments: ast.arguments = ast.parse(f"def f({ast.unparse(found.args)}): pass").body[0].args  # type: ignore[attr-defined]
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if arguments.args and arguments.args[0].arg in {"self", "cls"}:
        del arguments.args[0]
    return arguments
