"""Training texts that are on every machine with CPython, and any local text file.

Three texts come with the interpreter: the docstrings of the standard library ("docstrings"), the prose of the language
reference ("topics") and the library's source code without docstrings ("code"). Their wording depends on the Python
version, so a text is always recorded by its digest.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from whorl.errors import MalformedFile, UsageError

NAMES = ("docstrings", "topics", "code")
MAX_CHARACTERS = 1_500_000
MAX_FILE_BYTES = 100_000_000
PIECE_CHARACTERS = 4_000
HELD_OUT_EVERY = 20
CODE_FILE_EVERY = 8
# Not the library itself, or different from one installation to the next.
_SKIPPED = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
    ]
)


@dataclass(frozen=True)
class Corpus:
    """A text in pieces, with a fixed held-out part.

    Args:
        name: "docstrings", "topics", "code", or the file name of a user's text.
        pieces: Distinct pieces of at most about 4,000 characters, in a fixed order.
    """

    name: str
    pieces: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.pieces) < HELD_OUT_EVERY:
            raise UsageError(
                f"The text '{self.name}' has {len(self.pieces)} pieces; at least {HELD_OUT_EVERY} are needed "
                "to hold some out. Use a longer text with blank lines between paragraphs."
            )

    @property
    def train(self) -> tuple[str, ...]:
        """Pieces for training: all but the held-out ones."""
        return tuple(p for i, p in enumerate(self.pieces) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Every 20th piece; never trained on. Spread over the text because neighbours resemble each other."""
        return self.pieces[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]

    @property
    def digest(self) -> str:
        """SHA-256 of all pieces with their lengths, as "sha256:<hex>"."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            data = piece.encode("utf-8")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=8)
def load_corpus(name: str) -> Corpus:
    """One of the interpreter's texts by name, or a local UTF-8 `.txt` file by path.

    Raises:
        UsageError: unknown name, or too little text.
        MalformedFile: the file is missing, too large, not UTF-8, or the interpreter came without that text.
    """
    if name in NAMES:
        texts = {"docstrings": _docstrings, "topics": _topics, "code": _code}[name]()
        return Corpus(name, _pieces(texts))
    if not name.endswith(".txt"):
        raise UsageError(f"Unknown text '{name}': expected one of {', '.join(NAMES)}, or the path of a .txt file.")
    return Corpus(Path(name).name, _pieces([_text_file(Path(name))]))


def _text_file(path: Path) -> str:
    if not path.is_file():
        raise MalformedFile("text", path.name, "no such file", "a UTF-8 text file", "Check the path.")
    n_bytes = path.stat().st_size
    if n_bytes > MAX_FILE_BYTES:
        raise MalformedFile("text", path.name, f"{n_bytes} bytes", f"at most {MAX_FILE_BYTES} bytes", "Cut it.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        found = f"a byte at {error.start} that is not UTF-8"
        raise MalformedFile("text", path.name, found, "UTF-8", "Convert the file to UTF-8.") from error


def _pieces(texts: Iterable[str]) -> tuple[str, ...]:
    """Distinct pieces in order, cut at blank lines, until `MAX_CHARACTERS` are reached."""
    seen: dict[str, None] = {}
    n_characters = 0
    for text in texts:
        for piece in _cut(text):
            if piece in seen:
                continue
            seen[piece] = None
            n_characters += len(piece)
            if n_characters >= MAX_CHARACTERS:
                return tuple(seen)
    return tuple(seen)


def _cut(text: str) -> Iterator[str]:
    """Paragraphs joined until a piece has `PIECE_CHARACTERS`; a short text is one piece."""
    piece = ""
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if piece and len(piece) + len(paragraph) > PIECE_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield piece


def library_files() -> tuple[Path, list[Path]]:
    """Folder of the standard library and its source files in it, sorted by path.

    Raises:
        MalformedFile: there are none.
    """
    root = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata*.py holds the paths of the machine that built the interpreter.
    files = [
        path
        for path in root.rglob("*.py")
        if not _SKIPPED.intersection(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata")
    ]
    if not files:
        advice = "Use a Python installation with its library as files, or give a .txt file."
        raise MalformedFile("text", "standard library", "no source files", "the library's .py files", advice)
    return root, sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _docstrings() -> Iterator[str]:
    for path in library_files()[1]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        advice = "Install the documentation part of Python, or choose another text."
        raise MalformedFile("text", "topics", "no module pydoc_data", "pydoc_data.topics", advice) from error
    for name in sorted(topics):
        yield topics[name]


def _code() -> Iterator[str]:
    # Every 8th file, so that a bounded text is spread over the library and not only over modules named a... to c...
    for path in library_files()[1][::CODE_FILE_EVERY]:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _remove_docstring(node)
        yield "\n\n".join(ast.unparse(statement) for statement in tree.body)


def _remove_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
