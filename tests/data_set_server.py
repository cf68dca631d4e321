"""A small HTTP server that speaks the Hub's routes for data sets, and a worker process that reads texts from it.

with DataSetServer() as hub:
    hub.repos["org/name"] = DataSet({"a.parquet": b"..."})
    hub.endpoint                    # for HF_ENDPOINT

`python data_set_server.py` answers each line of stdin, a JSON text `org/name...`, by one JSON line: `huggingface_hub`
reads its environment when it is imported, so that reading needs a process of its own.
"""

import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from hub_server import commit_of


@dataclass
class DataSet:
    """Files of one data set.

    Args:
        files: Content by path.
        refs: Commit by further revision; "main" is always there.
        commit: Commit of "main".
        broken: Whether every request of a data file is answered by status 403.
    """

    files: dict
    refs: dict = field(default_factory=dict)
    commit: str = commit_of("main")
    broken: bool = False


class DataSetServer:
    """Threads, an ephemeral port on the loopback address; `log` holds (method, path) of every request."""

    def __init__(self):
        self.repos, self.log = {}, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

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
    wbufsize = -1

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append((self.command, path))
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
            self._about(match[1], match[2])
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", path):
            self._tree(self.hub.repos[match[1]], match[3])
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(self.hub.repos[match[1]], match[3])
        else:
            self._send(404, b"")

    def _about(self, name, revision):
        repo = self.hub.repos.get(name)
        commits = {} if repo is None else {"main": repo.commit, **repo.refs}
        commits |= {commit: commit for commit in commits.values()}
        if revision not in commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if repo else "RepoNotFound"})
            return
        files = [{"rfilename": file} for file in repo.files]
        facts = {"id": name, "sha": commits[revision], "siblings": files, "tags": [], "private": False, "gated": False}
        self._json(facts)

    def _tree(self, repo, folder):
        start = f"{folder}/" if folder else ""
        inside = [file for file in repo.files if file.startswith(start)]
        if not inside:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        files = [f for f in inside if "/" not in f.removeprefix(start)]
        folders = {f.removeprefix(start).partition("/")[0] for f in inside} - {f.removeprefix(start) for f in files}
        entries = [{"type": "file", "path": f, "size": len(repo.files[f]), "oid": commit_of(f)} for f in files]
        self._json([*entries, *({"type": "directory", "path": start + f, "oid": commit_of(f)} for f in folders)])

    def _file(self, repo, file):
        if file not in repo.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if repo.broken:
            self._send(403, b"")
            return
        content = repo.files[file]
        headers = {"ETag": f'"{commit_of(file)}"', "X-Repo-Commit": repo.commit}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            self._send(200, content, headers)
            return
        start, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        self._send(206, content[start : last + 1], headers | {"Content-Range": f"bytes {start}-{last}/{len(content)}"})

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def answer(name):
    from whorl.errors import WhorlError
    from whorl.lab.hub_text import hub_corpus

    try:
        corpus = hub_corpus(name)
    except WhorlError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"name": corpus.name, "digest": corpus.digest, "pieces": len(corpus.pieces), "first": corpus.pieces[0]}


def main():
    from whorl._readers import hub_client

    hub_client.RETRY_WAITS_S = (0.0,)  # the server of the tests needs no time to recover
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
