"""A small HTTP server that speaks the Hub's routes, with the faults that tests ask for; real sockets, real bytes.

with HubServer() as hub:
    hub.repos["org/name"] = Repo({"config.json": b"{}"})
    hub.endpoint                    # for HF_ENDPOINT
    hub.log                         # (method, path, headers) of every request
"""

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


def commit_of(text):
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    """Files of one repository, and what goes wrong with it.

    Args:
        files: Content by name.
        refs: Further revisions by name; "main" is always there.
        commit: Commit of "main".
        listed: Sizes to list instead of the true ones.
        page: Entries in one page of the list.
        next_page: Address of a next page to claim always; "HERE" stands for the page itself.
        busy: How many API requests are answered by `busy_status` first.
        busy_status: Status while busy.
        denied: (status, X-Error-Code) of every request.
        api: Body of the revision route instead of the true one.
        ranges: Whether range requests are honoured.
        cut: How many bytes fewer a whole download has than the HEAD request promised.
        cut_ranges: How many range answers are cut short first.
        moved: Commit that the file route claims, by file name or "*".
        storage: Endpoint of another server that holds the files; the file route redirects there.
        xet: Headers in which the Hub names its Xet storage; None when files are not there.
    """

    files: dict
    refs: dict = field(default_factory=dict)
    commit: str = commit_of("main")
    listed: dict = field(default_factory=dict)
    page: int = 1000
    next_page: str = ""
    busy: int = 0
    busy_status: int = 429
    denied: tuple = ()
    api: bytes = b""
    ranges: bool = True
    cut: int = 0
    cut_ranges: int = 0
    moved: dict = field(default_factory=dict)
    storage: str = ""
    xet: dict | None = None

    def resolve(self, revision):
        known = {"main": self.commit, self.commit: self.commit, **self.refs, **{c: c for c in self.refs.values()}}
        return known.get(revision)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # A client that has seen enough of a file hangs up; that is what the tests are about.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class HubServer:
    """Threads, an ephemeral port on the loopback address."""

    def __init__(self):
        self.repos, self.log = {}, []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def requests(self, method, part):
        """Logged requests of a method whose path contains `part`."""
        return [entry for entry in self.log if entry[0] == method and part in entry[1]]

    def whole_downloads(self, ending):
        """GET requests for whole files whose name ends so."""
        asked = self.requests("GET", ending)
        return [entry for entry in asked if urlsplit(entry[1]).path.endswith(ending) and "range" not in entry[2]]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub = None
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet; two of them wait 40 ms for each other

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = unquote(self.path)
        self.hub.log.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        url = urlsplit(self.path)
        if match := re.fullmatch(r"/api/models/(.+?)/(revision|tree)/([^/]+)/?", url.path):
            self._api(match[1], match[2], unquote(match[3]), parse_qs(url.query))
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", url.path):
            self._file(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(r"/xet/(.+)", url.path):
            self._send(200, b"", self.hub.repos[match[1]].xet)
        elif match := re.fullmatch(r"/storage/(.+?)/file/(.+)", url.path):
            self._send_content(self.hub.repos[match[1]], self.hub.repos[match[1]].files[match[2]], {})
        else:
            self._send(404, b"")

    def _refused(self, name, revision):
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo.denied:
            self._send(repo.denied[0], b"", {"X-Error-Code": repo.denied[1]} if repo.denied[1] else {})
        elif repo.resolve(revision) is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _api(self, name, route, revision, query):
        if self._refused(name, revision):
            return
        repo = self.hub.repos[name]
        if repo.busy > 0:
            repo.busy -= 1
            self._send(repo.busy_status, b"", {"Retry-After": "0"})
        elif route == "revision":
            answer = json.dumps({"id": name, "sha": repo.resolve(revision)}).encode()
            self._send(200, repo.api or answer, {"Content-Type": "application/json"})
        else:
            self._tree(name, repo, int(query.get("cursor", ["0"])[0]))

    def _tree(self, name, repo, start):
        entries = [{"type": "directory", "path": "onnx", "size": 0}]
        for file, content in repo.files.items():
            size = repo.listed.get(file, len(content))
            large = {"lfs": {"size": size}} if file.endswith(".safetensors") else {}
            entries.append({"type": "file", "path": file, "size": size, **large})
        here = f"{self.hub.endpoint}{urlsplit(self.path).path}"
        following = f"{here}?cursor={start + repo.page}"
        more = repo.next_page.replace("HERE", here) or (following if start + repo.page < len(entries) else "")
        headers = {"Link": f'<{more}>; rel="next"'} if more else {}
        body = json.dumps(entries[start : start + repo.page]).encode()
        self._send(200, body, {"Content-Type": "application/json", **headers})

    def _file(self, name, revision, file):
        if self._refused(name, revision):
            return
        repo = self.hub.repos[name]
        if file not in repo.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = repo.files[file]
        commit = repo.moved.get(file, repo.moved.get("*", repo.resolve(revision)))
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        headers["X-Linked-Size"] = str(len(content))
        if repo.xet is not None:
            route = f"{self.hub.endpoint}/xet/{name}"
            headers |= {"X-Xet-Hash": hashlib.sha256(content).hexdigest(), "X-Xet-Refresh-Route": route}
        if repo.storage:
            where = f"{repo.storage}/storage/{name}/file/{file}?signature=signed-secret"
            self._send(302, b"", {**headers, "Location": where})
        else:
            self._send_content(repo, content, headers)

    def _send_content(self, repo, content, headers):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers.get("Range", ""))
        if not wanted or not repo.ranges:
            kept = len(content) - (repo.cut if self.command == "GET" else 0)
            self._send(200, content[:kept], headers)
            return
        start, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        body = content[start : last + 1]
        if repo.cut_ranges > 0:
            repo.cut_ranges -= 1
            body = body[:10]
        self._send(206, body, {**headers, "Content-Range": f"bytes {start}-{last}/{len(content)}"})

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
