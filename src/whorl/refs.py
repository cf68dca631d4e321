"""What a user types to name a model, as one frozen value.

    ./folder  /abs/folder  ~/folder  ./model.gguf  model.gguf      local files
    org/name  org/name@rev  hf://org/name@rev  gpt2  web address   a repository on the Hub
    base+adapter                                                   a base with a LoRA adapter, each in any form above

`gallery:name` names a stored fingerprint, no model: commands that compare take it (`whorl.gallery.stored`).

Nothing is guessed: a text that has two readings is a `UsageError` that shows both spellings. `str(ref)` is the
canonical spelling, and `parse_ref(str(ref)) == ref` for every `ref` that `parse_ref` made of one text (while no local
folder takes the name of a repository).
"""

import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from whorl.errors import UsageError, safe_name

MAX_TEXT_LENGTH = 4096
MAX_REVISION_LENGTH = 255
WEIGHT_FILE_ENDINGS = (".gguf", ".safetensors")

# References that contain a slash and are never percent-encoded, neither by the Hub nor by us.
_SPECIAL_REVISION = re.compile(r"refs/(?:pr/[0-9]+|convert/[A-Za-z0-9_.-]+)")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_WORD = r"(?=[A-Za-z0-9_])[A-Za-z0-9_.-]{1,96}(?<=[A-Za-z0-9_])"
_REPOSITORY = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_VIEWER_ROUTES = ("blame", "blob", "raw", "resolve", "tree")
_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class ModelRef:
    """One model as named by the user; exactly one of `path` and `repo` is set.

    Args:
        path: Local folder or weight file; starts with ".", "/" or "~" (or a drive on Windows).
        repo: Hub repository, "org/name" or an old one-word name.
        revision: Branch, tag, commit or "refs/pr/N" of `repo`; None is the default branch.
        adapter: LoRA adapter to put on this base, itself without adapter.
    """

    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    adapter: "ModelRef | None" = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise UsageError("A model is either a local path or a Hub repository.")
        if self.path is not None and self.revision is not None:
            raise UsageError(f"'{safe_name(self.path)}' is a local path; a revision belongs to a Hub repository.")
        if self.adapter is not None and self.adapter.adapter is not None:
            raise UsageError("An adapter cannot carry a second adapter: merge one of them into the base first.")

        _check_repository(self.repo)
        _checked_revision(self.revision, str(self.revision))

    @property
    def base(self) -> "ModelRef":
        """This reference without its adapter."""
        return replace(self, adapter=None)

    def __str__(self) -> str:
        text = self.path if self.path is not None else self._hub_text()
        return text if self.adapter is None else f"{text}+{self.adapter}"

    def _hub_text(self) -> str:
        text = f"{self.repo}{_revision_suffix(self.revision)}"
        # Without a revision such a name reads like a weight file.
        return f"hf://{text}" if text.endswith(WEIGHT_FILE_ENDINGS) and "@" not in text else text


def parse_ref(text: str, *, adapter: str | None = None) -> ModelRef:
    """The model that `text` names. Looks at the file system only to find out that a text has two readings.

    Args:
        text: Any form of the module docstring. Without `adapter`, one "+" separates base and adapter.
        adapter: The adapter, when it comes apart from its base; then a "+" in a path is part of the path.

    Raises:
        UsageError: `text` is no reference, has two readings, or names something whorl does not read.
    """
    if adapter is not None:
        return replace(_parse_one(text), adapter=_parse_one(adapter))
    _check_characters(text)
    left, plus, right = text.partition("+")
    if not plus or (_is_path(text) and _is_one_path(text, left)):
        return _parse_one(text)
    if "+" in right:
        raise UsageError(f"'{safe_name(text)}' has more than one '+'. Name the adapter with --adapter instead.")
    if not left or not right:
        raise UsageError(f"'{safe_name(text)}' has an empty side. Write base+adapter, each a path or a repository.")
    return replace(_parse_one(left), adapter=_parse_one(right))


def with_revision(ref: ModelRef, revision: str | None) -> ModelRef:
    """`ref` at `revision`, as given by an option beside it.

    Raises:
        UsageError: the base is local, the reference names another revision, or `revision` is none.
    """
    if revision is None:
        return ref
    if ref.revision not in (None, revision):
        raise UsageError(f"'{ref}' names a revision already; drop it or drop the revision '{safe_name(revision)}'.")
    return replace(ref, revision=_checked_revision(revision, revision))


def local_path(path: str) -> Path:
    """The path of a local reference, "~" replaced; "~nobody" stays as it is and will not be found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user


def _parse_one(text: str) -> ModelRef:
    _check_characters(text)
    if text.startswith("gallery:"):
        raise UsageError(f"'{safe_name(text)}' is a stored fingerprint without weights; name a model here.")
    if _is_path(text):
        return ModelRef(path=text)
    if "://" in text or _is_schemeless_address(text):
        return _parse_address(text)
    if text.endswith(WEIGHT_FILE_ENDINGS) and "@" not in text:
        return _parse_bare_file(text)
    return _parse_repository(text)


def _check_characters(text: str) -> None:
    if not text or text != text.strip():
        raise UsageError(f"'{safe_name(text)}' is empty or has blanks around it; name a model.")
    if len(text) > MAX_TEXT_LENGTH:
        raise UsageError(f"'{safe_name(text, 40)}' has {len(text)} characters; at most {MAX_TEXT_LENGTH} make sense.")
    bad = control_character(text)
    if bad is not None:
        raise UsageError(f"'{safe_name(text)}' contains the control character U+{ord(bad):04X}.")


def control_character(text: str) -> str | None:
    """The first character that would steer a terminal or reorder a line, None when there is none."""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI_CONTROLS), None)


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or (Path(text).is_absolute() and "://" not in text)


def _is_one_path(text: str, left: str) -> bool:
    """Whether a path with a plus sign is one path, because that path exists and the part before the sign does not."""
    if not os.path.lexists(local_path(text)):
        return False
    if os.path.lexists(local_path(left)):
        both = f"'{safe_name(text)}' exists, and so does '{safe_name(left)}'"
        raise UsageError(f"{both}: rename one, or name the adapter with --adapter.")
    return True


def _parse_bare_file(text: str) -> ModelRef:
    if "/" in text:
        raise UsageError(f"'{safe_name(text)}' may be a file or a repository: write {_both_spellings(text)}.")
    return ModelRef(path=f"./{text}")


def _both_spellings(text: str) -> str:
    shown = safe_name(text)
    return f"'./{shown}' for the local files or 'hf://{shown}' for the Hub"


def _parse_repository(text: str) -> ModelRef:
    if os.path.lexists(text):
        raise UsageError(f"'{safe_name(text)}' is also a local file or folder: write {_both_spellings(text)}.")
    if text.partition("@")[0].count("/") > 1:
        raise UsageError(f"'{safe_name(text)}' is not 'org/name'; a local path starts with '.', '/' or '~'.")
    return _from_hub_text(text, shown=text)


def _is_schemeless_address(text: str) -> bool:
    from huggingface_hub import constants

    return text.partition("/")[0].lower() in constants.HF_URL_HOSTS


def _parse_address(text: str) -> ModelRef:
    if text.startswith("hf://"):
        return _from_hub_text(text.removeprefix("hf://"), shown=text)
    try:
        host = urlsplit(text).netloc or text.partition("/")[0]
    except ValueError as error:  # unbalanced brackets, characters that turn into others
        raise UsageError(f"'{safe_name(text)}' is no address: {safe_name(error, 80)}.") from None
    if "@" in host:
        raise UsageError(
            "The web address carries a user name or password; remove it. Tokens come from the environment."
        )
    if "://" in text and not text.lower().startswith(("http://", "https://")):
        raise UsageError(f"'{safe_name(text)}' is not an address whorl reads; use hf://, https:// or a local path.")
    return _from_web_address(without_query(text))


def without_query(text: str) -> str:
    """A web address without its query and fragment, which may hold secrets; any other text unchanged."""
    return text.partition("#")[0].partition("?")[0] if text.lower().startswith(("http://", "https://")) else text


def _from_web_address(text: str) -> ModelRef:
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    segments = [s for s in text.partition("://")[2].split("/")[1:] if s] if "://" in text else text.split("/")[1:]
    if len(segments) >= 2 and segments[1] in _VIEWER_ROUTES:
        # Pages of old one-word names: the library's parser would take the route for the second half of the name.
        return _from_hub_text("@".join([segments[0], *(["/".join(segments[2:])] if segments[2:] else [])]), shown=text)
    try:
        uri = parse_hf_uri(text, endpoint=constants.ENDPOINT)
    except HfUriError as error:
        hint = "Copy the address of a model's page, or write org/name."
        raise UsageError(f"'{safe_name(text)}' is not a model's address: {safe_name(error.msg, 200)} {hint}") from None
    return _checked_hub_ref(uri.type, uri.id, uri.revision, uri.path_in_repo, text)


def _from_hub_text(text: str, shown: str) -> ModelRef:
    """A reference from `name[@rev]` or `org/name[@rev]`; one-word names are ours, the library insists on two words."""
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    name, at, revision = text.partition("@")
    if "/" not in name:
        special = _SPECIAL_REVISION.match(revision)
        rest = revision[special.end() :] if special else "".join(revision.partition("/")[1:])
        plain = revision.removesuffix(rest) if rest else revision
        return _checked_hub_ref("model", name, unquote(plain) if at else None, rest.strip("/"), shown)
    try:
        uri = parse_hf_uri(f"hf://{text}")
    except HfUriError as error:
        raise UsageError(f"'{safe_name(shown)}' names no repository: {safe_name(error.msg, 200)}") from None
    return _checked_hub_ref(uri.type, uri.id, uri.revision, uri.path_in_repo, shown)


def _checked_hub_ref(kind: str, repo: str, revision: str | None, path: str, shown: str) -> ModelRef:
    if kind != "model":
        raise UsageError(f"'{safe_name(shown)}' is a {kind}, not a model.")
    if path:
        # A slash after "@" begins a path for the Hub's own parser; guessing a branch here would read another model.
        raise UsageError(
            f"'{safe_name(shown)}' points inside a repository; whorl reads whole repositories: write '{repo}@rev', "
            "with %2F for a slash in the name of a branch."
        )
    return ModelRef(repo=repo, revision=_checked_revision(revision, shown))


def _check_repository(repo: str | None) -> None:
    """The Hub's own rules for names (its `validate_repo_id`), without its exception."""
    forbidden = repo is not None and ("--" in repo or ".." in repo or repo.endswith(".git"))
    if forbidden or (repo is not None and not _REPOSITORY.fullmatch(repo)):
        raise UsageError(f"'{safe_name(repo)}' names no repository; expected 'org/name'.")


def _checked_revision(revision: str | None, shown: str) -> str | None:
    if revision is None:
        return None
    plain = _REVISION.fullmatch(revision) and ".." not in revision and len(revision) <= MAX_REVISION_LENGTH
    if not plain or any(part.endswith((".", ".lock")) for part in revision.split("/")):
        raise UsageError(f"'{safe_name(shown)}': no branch, tag or commit is called '{safe_name(revision, 40)}'.")
    return revision


def _revision_suffix(revision: str | None) -> str:
    if revision is None:
        return ""
    return f"@{revision}" if _SPECIAL_REVISION.fullmatch(revision) else f"@{quote(revision, safe='')}"
