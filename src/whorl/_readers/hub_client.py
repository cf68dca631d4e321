"""Two kinds of question to the Hub, each bounded in size, patience and trust: a JSON answer, a range of a file.

`huggingface_hub` supplies endpoint, session, proxies and token; the answers are checked here, because a captive
portal, a proxy without range requests or a crafted repository can answer anything. Messages name the repository and
the file, never an address (signed addresses are secrets) and never a header.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from whorl import __version__
from whorl._readers import limits, strict_json
from whorl._readers.stand_ins import HEAD_BYTES, refuse_text_stand_in
from whorl._readers.subject import Subject, size_text
from whorl.errors import RemoteError, UsageError, WhorlError

if TYPE_CHECKING:
    import httpx2

RETRY_WAITS_S = (1.0, 2.0, 4.0)
MAX_WAIT_S = 60.0
TIMEOUT_S = 30.0
MAX_PAGES = 50
_RETRIED = (408, 429, 500, 502, 503, 504)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Page:
    """One JSON answer: its value, and the address of the next page, None at the end."""

    value: Any
    next_url: str | None


class TryLater(Exception):
    """An answer that may be another one in a moment; never leaves the readers.

    Args:
        reason: What happened, for the message when patience ends.
        wait_s: Seconds the server asks us to wait, None when it does not say.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        self.reason, self.wait_s = reason, wait_s
        super().__init__(reason)


def patiently(question: Callable[[], _Answer], what: str) -> _Answer:
    """The answer to a question, asked again a few times while the other side is busy.

    Raises:
        RemoteError: no answer after `RETRY_WAITS_S`.
    """
    for wait_s in RETRY_WAITS_S:
        try:
            return question()
        except TryLater as error:
            time.sleep(min(wait_s if error.wait_s is None else error.wait_s, MAX_WAIT_S))
    try:
        return question()
    except TryLater as error:
        tries = len(RETRY_WAITS_S) + 1
        raise RemoteError(f"{what}: {error.reason}, {tries} times. Try again later, or use --offline.") from None


def get_pages(path: str, repo: str, revision: str, **parameters: str) -> Iterator[Any]:
    """All pages of a JSON answer of the Hub's API.

    Args:
        path: Path below the endpoint, already quoted.
        repo: Repository, for messages.
        revision: Revision or commit, for messages.
        parameters: Query parameters of the first page.

    Raises:
        UsageError: repository or revision do not exist, or need a token or an agreement.
        RemoteError: no network, a server that fails, more than `MAX_PAGES` pages, another host.
    """
    from huggingface_hub import constants

    url: str | None = f"{constants.ENDPOINT}{path}"
    host = urlsplit(constants.ENDPOINT).netloc
    for _ in range(MAX_PAGES):
        if url is None:
            return
        if urlsplit(url).netloc != host:
            raise RemoteError(f"The Hub's list of '{repo}' continues on another host. Nothing was read.")
        page = patiently(partial(_get_page, url, repo, revision, parameters), f"The Hub on '{repo}'")
        yield page.value
        url, parameters = page.next_url, {}
    raise RemoteError(f"The Hub's list of '{repo}' has more than {MAX_PAGES} pages. Nothing was read.")


def _get_page(url: str, repo: str, revision: str, parameters: dict[str, str]) -> Page:
    with _asking(repo), _stream(url, {}, parameters) as response:
        raise_for_status(response, repo, revision)
        body = _read(response, limits.MAX_JSON, repo)
        following = response.links.get("next", {}).get("url")
    try:
        return Page(strict_json.parse(body, "answer", f"about {repo}"), following)
    except WhorlError as error:
        raise RemoteError(f"The Hub's answer about '{repo}' is none: {error}") from None


def get_range(repo: str, commit: str, name: str, size: int, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file at a commit, cut at its end, without downloading the rest.

    Args:
        repo: Repository.
        commit: Full commit.
        name: File name in the root of the repository.
        size: Size of the file in bytes as listed.
        start: First byte.
        stop: Byte after the last.

    Raises:
        MalformedFile: a web page instead of the file.
        RemoteError: no network; the whole file instead of a range; another size or commit than listed; cut short.
        UsageError: see `get_pages`.
    """
    stop = min(stop, size)
    question = partial(_get_range, repo, commit, name, size, start, stop)
    return patiently(question, f"The Hub on '{name}' of '{repo}'")


def _get_range(repo: str, commit: str, name: str, size: int, start: int, stop: int) -> bytes:
    from huggingface_hub import hf_hub_url

    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with _asking(repo), _stream(hf_hub_url(repo, name, revision=commit), headers, {}) as response:
        raise_for_status(response, repo, commit)
        _check_commit(response, repo, commit)
        whole = response.status_code == 200
        if whole and (start, stop) != (0, size):
            _refuse_page(response, name)
            found = f"A request for {size_text(stop - start)} of '{name}' of '{repo}' was answered by the whole file"
            raise RemoteError(f"{found}: a proxy between here and the Hub cannot serve ranges. Nothing was downloaded.")
        if not whole and not response.headers.get("Content-Range", "").endswith(f"{start}-{stop - 1}/{size}"):
            raise RemoteError(f"The Hub served another part of '{name}' of '{repo}' than asked for. Run again.")
        body = _read(response, stop - start, repo)
    if len(body) != stop - start:
        raise TryLater(f"'{name}' was cut short, {len(body)} of {stop - start} bytes")
    return body


def _refuse_page(response: "httpx2.Response", name: str) -> None:
    head = b"".join(chunk for chunk, _ in zip(response.iter_bytes(HEAD_BYTES), range(1), strict=False))
    refuse_text_stand_in(head, Subject("file", name), "safetensors")


def _check_commit(response: "httpx2.Response", repo: str, commit: str) -> None:
    """The commit the Hub says it serves, in its own answer before any redirect to a storage host."""
    commits = [r.headers["X-Repo-Commit"] for r in (*response.history, response) if "X-Repo-Commit" in r.headers]
    if not commits:
        raise RemoteError(
            f"The answer about '{repo}' names no commit: this endpoint does not speak the Hub's protocol."
        )
    if any(served != commit for served in commits):
        raise RemoteError(f"'{repo}' changed between two requests: another commit than {commit} was served. Run again.")


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Translates what the HTTP library raises while one question is asked; its own texts may hold signed addresses."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise RemoteError(f"Offline mode is on: the Hub was not asked about '{repo}'.") from None
    except httpx2.TransportError as error:
        raise TryLater(f"no answer ({type(error).__name__})") from None
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise RemoteError(f"The Hub's answer about '{repo}' cannot be read ({type(error).__name__}).") from None


def _stream(url: str, headers: dict[str, str], parameters: dict[str, str]) -> Any:
    from huggingface_hub import get_session
    from huggingface_hub.utils._headers import build_hf_headers

    own = build_hf_headers(library_name="whorl", library_version=__version__, headers=headers)
    # An empty table of parameters would drop the query of a next page.
    return get_session().stream(
        "GET", url, headers=own, timeout=TIMEOUT_S, follow_redirects=True, params=parameters or None
    )


def _read(response: "httpx2.Response", cap: int, repo: str) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > cap:
            raise RemoteError(f"The Hub's answer about '{repo}' is over {size_text(cap)}. Nothing was read.")
    return bytes(body)


def raise_for_status(response: "httpx2.Response", repo: str, revision: str) -> None:
    """Translate a status that is no success.

    Raises:
        UsageError: not found, or access not granted.
        TryLater: the server is busy or failed.
        RemoteError: any other status.
    """
    status = response.status_code
    if status in (200, 206):
        return
    if status in _RETRIED:
        wait = response.headers.get("Retry-After", "")
        raise TryLater(f"status {status}", float(wait) if wait.isdecimal() and len(wait) < 9 else None)
    raise status_error(status, response.headers.get("X-Error-Code", ""), repo, revision)


def status_error(status: int, code: str, repo: str, revision: str) -> WhorlError:
    """The error for a status of the Hub.

    Args:
        status: HTTP status.
        code: Its `X-Error-Code`, "" when there is none.
        repo: Repository.
        revision: Revision or commit.
    """
    if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
        return UsageError(
            f"'{repo}' is gated: accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN."
        )
    if code == "RevisionNotFound":
        return UsageError(f"'{repo}' has no revision '{revision}'.")
    if code == "EntryNotFound":
        return RemoteError(f"'{repo}' lists a file at '{revision}' that it does not serve. Run again.")
    if status in (401, 404) or code == "RepoNotFound":
        return UsageError(
            f"No repository '{repo}' is visible. Check the name; if it is private or gated, log in with `hf auth login`"
            " or set HF_TOKEN."
        )
    return RemoteError(f"The Hub answered status {status} about '{repo}'. Try again later.")


def model_path(repo: str, revision: str) -> str:
    """API path of one model at a revision; the list of its files is below `tree`."""
    return f"/api/models/{repo}/revision/{quote(revision, safe='')}"


def tree_path(repo: str, commit: str) -> str:
    """API path of the files in the root of a model at a commit."""
    return f"/api/models/{repo}/tree/{commit}"
