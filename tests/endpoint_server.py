"""An OpenAI-compatible server on a real socket: an example model answers, drawn with the request's seed through transformers.

with EndpointServer() as server:
    server.url()            # base address; both routes, log-probabilities, usage
    server.url("busy")      # the same with a fault from FAULTS
    server.log              # (path, headers, body) of every request

It is a plain server: fields it does not know (top_k, ...) are refused, unless the address has the prefix "extras".
"""

import asyncio
import json
import math
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import whorl
from whorl.samplers.limits import Clock

MODEL = "base-0"
ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
EPOCH = datetime(2026, 11, 1, 12, tzinfo=UTC)
KNOWN = {"model", "prompt", "messages", "seed", "stream", "temperature", "top_p", "max_tokens", "stop"}
KNOWN |= {"logprobs", "top_logprobs"}
EXTRAS = {"top_k", "min_p", "repetition_penalty", "min_tokens"}
MAX_CONTEXT = 128
_drawing = threading.Lock()


class QuickClock(Clock):
    """Time that passes only in `sleep`, and at once."""

    def __init__(self):
        self.time, self.slept = 0.0, []

    def now(self):
        return self.time

    def utc(self):
        return EPOCH + timedelta(seconds=self.time)

    async def sleep(self, seconds):
        self.time += seconds
        self.slept.append(seconds)
        await asyncio.sleep(0)


@lru_cache(maxsize=1)
def _model():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ZOO / MODEL)
    return AutoModelForCausalLM.from_pretrained(ZOO / MODEL, dtype=torch.float32).eval(), tokenizer


@dataclass
class Drawn:
    """What the model said: ids, and per position the drawn token and the most probable ones with raw log-probabilities."""

    n_prompt: int
    ids: list = field(default_factory=list)
    tokens: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    tops: list = field(default_factory=list)
    finish: str = "length"
    text: str = ""


def draw(prompt, request):
    """Sample one answer, token by token: temperature, top_p, top_k, stop strings, the request's seed."""
    import torch

    with _drawing, torch.inference_mode():
        model, tokenizer = _model()
        ids = tokenizer(prompt)["input_ids"] or [tokenizer.bos_token_id]
        generator = torch.Generator().manual_seed(request.get("seed", 0) & (2**63 - 1))
        drawn, cache, given = Drawn(len(ids)), None, torch.tensor([ids])
        for _ in range(request.get("max_tokens", 16)):
            out = model(input_ids=given, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1].double()
            chosen = _choose(logits, request, generator)
            if chosen == tokenizer.eos_token_id:
                drawn.finish = "stop"
                break
            _note(drawn, chosen, torch.log_softmax(logits, -1), tokenizer)
            if any(stop in drawn.text for stop in request.get("stop", [])):
                cut = min(drawn.text.find(stop) for stop in request["stop"] if stop in drawn.text)
                drawn.text, drawn.finish = drawn.text[:cut], "stop"
                break
            given = torch.tensor([[chosen]])
    return drawn


def _choose(logits, request, generator):
    import torch

    if request.get("temperature", 1.0) == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / request.get("temperature", 1.0), -1)
    sorted_, order = probabilities.sort(descending=True)
    sorted_[sorted_.cumsum(0) - sorted_ >= request.get("top_p", 1.0)] = 0
    if request.get("top_k", 0) > 0:
        sorted_[request["top_k"] :] = 0
    return int(order[torch.multinomial(sorted_, 1, generator=generator)])


def _note(drawn, chosen, logs, tokenizer):
    drawn.ids.append(chosen)
    drawn.tokens.append(tokenizer.decode([chosen]))
    drawn.logprobs.append(float(logs[chosen]))
    values, ids = logs.topk(5)
    drawn.tops.append([(tokenizer.decode([int(i)]), float(v)) for v, i in zip(values, ids, strict=True)])
    drawn.text = tokenizer.decode(drawn.ids)


def answer_of(drawn, request, *, chat):
    """The answer as JSON values."""
    wanted = request.get("top_logprobs" if chat else "logprobs", 0) or 0
    choice = {"index": 0, "finish_reason": drawn.finish, "logprobs": None}
    if chat:
        choice["message"] = {"role": "assistant", "content": drawn.text}
        if request.get("logprobs"):
            rows = zip(drawn.tokens, drawn.logprobs, drawn.tops, strict=True)
            choice["logprobs"] = {"content": [_chat_token(*row, wanted) for row in rows]}
    else:
        choice["text"] = drawn.text
        if "logprobs" in request:
            tops = [dict(top[:wanted]) for top in drawn.tops]
            lists = {"tokens": drawn.tokens, "token_logprobs": drawn.logprobs, "top_logprobs": tops}
            choice["logprobs"] = {**lists, "text_offset": list(range(len(tops)))}
    n_drawn = len(drawn.ids) + (drawn.finish == "stop")
    usage = {"prompt_tokens": drawn.n_prompt, "completion_tokens": n_drawn, "total_tokens": drawn.n_prompt + n_drawn}
    kind = "chat.completion" if chat else "text_completion"
    about = {"id": "cmpl-1", "object": kind, "created": 1, "system_fingerprint": "fp_1", "kv_transfer_params": None}
    return {**about, "model": request["model"], "choices": [choice], "usage": usage}


def _chat_token(token, logprob, top, wanted):
    tops = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in top[:wanted]]
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": tops}


def _later(status, n_times, **headers):
    """A status with headers for the first requests, then the true answer."""

    def reply(handler, n_before):
        if n_before >= n_times:
            return False
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.send(status, b'{"error": {"message": "busy"}}', {"Content-Type": "application/json", **named})
        return True

    return reply


def _status(status, body=b"", **headers):
    return _later_body(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def _later_body(status, body, headers):
    def reply(handler, n_before):
        handler.send(status, body, headers)
        return True

    return reply


def _echo_key(status):
    def reply(handler, n_before):
        said = {"error": {"message": f'"api_key": bad key {handler.headers["Authorization"]} at http://me:pw@host'}}
        handler.send(status, json.dumps(said).encode())
        return True

    return reply


def _redirect_away(handler, n_before):
    handler.send(307, b"", {"Location": f"{handler.site.elsewhere}/v1/completions?signed=secret"})
    return True


def _stuck(handler, n_before):
    """The first request is to wait an hour, all others have the wrong key."""
    if n_before:
        time.sleep(1.5)
        return BEFORE["denied"](handler, n_before)
    # The pause holds back requests that were not sent yet: both are to be under way, also on a busy machine.
    time.sleep(0.7)
    return _later(429, 1, Retry_After="3600")(handler, n_before)


def _slow(handler, n_before):
    handler.site.closing.wait(10)
    return True


def _drip(handler, n_before):
    """A head at once, and then a blank now and then."""
    handler.start(200, {"Content-Length": "1000"})
    with suppress(ConnectionError):
        while not handler.site.closing.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    return True


def _huge(handler, n_before):
    handler.start(200, {"Content-Length": str(10**12)})
    with suppress(ConnectionError):
        while True:
            handler.wfile.write(b" " * 65536)
    return True


def _cut(handler, n_before):
    if n_before >= 2:
        return False
    handler.send(200, b'{"choices": [{"text": "never fin')
    return True


def _torn(handler, n_before):
    """Fewer bytes than promised."""
    handler.start(200, {"Content-Length": "1000"})
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def _drop_every_second(handler, n_before):
    return False if n_before % 2 else _torn(handler, n_before)


def _retitled(name):
    return lambda answer, handler: answer.update(model=name)


def _choice(**fields):
    return lambda answer, handler: answer["choices"][0].update(fields)


def _logs(change):
    return lambda answer, handler: change(answer["choices"][0]["logprobs"])


def _set_at(name, place, value):
    def change(logs):
        logs[name][place] = value

    return _logs(change)


def _echo_in_text(answer, handler):
    key = handler.headers["Authorization"].removeprefix("Bearer ")
    answer["choices"][0] |= {"text": f"your key is {key}", "logprobs": None}
    answer["system_fingerprint"] = key


PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>"
BEFORE = {  # faults in place of an answer: (handler, requests before this one) -> whether an answer was sent
    "busy-seconds": _later(429, 2, Retry_After="7"),
    "busy-date": _later(429, 1, Retry_After=format_datetime(EPOCH + timedelta(seconds=9), usegmt=True)),
    "busy-long": _later(429, 1, Retry_After="86400"),
    "busy-once": _later(429, 1, Retry_After="0"),
    "busy": _later(429, 10**9),
    "flaky": _later(503, 2),
    "failing": _later(500, 10**9),
    "denied": _echo_key(401),
    "forbidden": _echo_key(403),
    "refused": _echo_key(400),
    "unpaid": _status(402),
    "unknown": _status(404, b'{"error": {"message": "The model does not exist"}}'),
    "page": _status(200, PAGE, Content_Type="text/html"),
    "page-502": _status(502, PAGE),
    "redirect-away": _redirect_away,
    "redirect-here": _status(308, Location="/v2/completions"),
    "redirect-nowhere": _status(302, Location="http://[bad"),
    "gzip": _status(200, b"\x1f\x8b", Content_Encoding="gzip"),
    "no-json": _status(200, b"{'choices': []}"),
    "list": _status(200, b"[]}"),
    "shape": _status(200, b'{"choices": 7}'),
    "error-200": _status(200, b'{"error": {"message": "upstream failed"}}'),
    "no-choices": _status(200, b'{"choices": []}'),
    "stuck": _stuck,
    "slow": _slow,
    "drip": _drip,
    "huge": _huge,
    "cut": _cut,
    "torn": _torn,
    "drops": _drop_every_second,
}
AFTER = {  # faults in an answer: (answer, handler), changed in place
    "other-model": _retitled("base-0-mini"),
    "dated": _retitled("base-0-2024-08-06"),
    "unnamed": _retitled(None),
    "empty": _choice(text="", logprobs={"tokens": [], "token_logprobs": [], "top_logprobs": []}),
    "filter": _choice(finish_reason="content_filter"),
    "tools": _choice(finish_reason="tool_calls"),
    "refusal": _choice(message={"role": "assistant", "content": None, "refusal": "I cannot help with that."}),
    "other-route": lambda answer, handler: answer["choices"][0].pop("text"),
    "surrogate": _choice(text="\ud83d"),
    "no-logprobs": _choice(logprobs=None),
    "odd-logprobs": _choice(logprobs=[1, 2]),
    "short-logprobs": _logs(lambda logs: [values.pop() for values in logs.values()]),
    "uneven-logprobs": _logs(lambda logs: logs["token_logprobs"].pop()),
    "null-logprob": _set_at("token_logprobs", 2, None),
    "positive-logprob": _set_at("token_logprobs", 2, 0.5),
    "infinite-logprob": _set_at("token_logprobs", 2, -math.inf),
    "nan-alternative": _set_at("top_logprobs", 1, {"a": math.nan}),
    "infinite-alternative": _set_at("top_logprobs", 1, {"a": -math.inf, "b": -1}),
    "large-logprobs": _set_at("top_logprobs", 1, {f"{'x' * 50}{i}": -1.0 for i in range(6_000)}),
    "no-usage": lambda answer, handler: answer.pop("usage"),
    "wild-usage": lambda answer, handler: answer.update(usage={"prompt_tokens": -5, "completion_tokens": 10**30}),
    "echo": _echo_in_text,
}
FAULTS = sorted(BEFORE | AFTER)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # A client that has had enough hangs up; that is what the tests are about.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class EndpointServer:
    """Threads, an ephemeral port on the loopback address.

    Args:
        delay_s: Seconds that every answer takes at least.
        tls: SSL context of an https server, None for http.
    """

    def __init__(self, delay_s=0.0, tls=None):
        self.log, self.elsewhere, self.delay_s = [], "http://elsewhere.example", delay_s
        self.closing, self.lock, self.counts = threading.Event(), threading.Lock(), {}
        self.n_open = self.most_open = 0
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": self}))
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def host(self):
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, fault=""):
        return f"{self._scheme}://{self.host}{'/' if fault else ''}{fault}/v1"

    @property
    def prompts(self):
        """Prompts of all completion requests so far."""
        return [body["prompt"] for _, _, body in self.log]

    def __enter__(self):
        _model()  # here: loading is not safe between threads
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    site = None
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet

    def log_message(self, *_):
        pass

    def do_POST(self):
        if self.site.closing.is_set():  # a kept connection outlives the server otherwise
            self.close_connection = True
            return
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.path.partition("/v1/")[0].strip("/")
        with self.site.lock:
            self.site.log.append((self.path, {k.lower(): v for k, v in self.headers.items()}, request))
            n_before = self.site.counts.get(fault, 0)
            self.site.counts[fault] = n_before + 1
            self.site.n_open += 1
            self.site.most_open = max(self.site.most_open, self.site.n_open)
        try:
            if self.site.delay_s:
                time.sleep(self.site.delay_s)
            if fault not in BEFORE or not BEFORE[fault](self, n_before):
                self._answer(fault, request)
        finally:
            with self.site.lock:
                self.site.n_open -= 1

    def _answer(self, fault, request):
        chat = self.path.endswith("/chat/completions")
        unknown = sorted(set(request) - KNOWN - (EXTRAS if fault == "extras" else set()))
        if unknown:
            self._refuse(f"Unrecognized request argument supplied: {unknown[0]}")
            return
        turns = request.get("messages", [])
        prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) if chat else request["prompt"]
        if len(_model()[1](prompt)["input_ids"]) + request.get("max_tokens", 16) > MAX_CONTEXT:
            self._refuse(f"This model's maximum context length is {MAX_CONTEXT} tokens")
            return
        answer = answer_of(draw(prompt, request), request, chat=chat)
        if fault in AFTER:
            AFTER[fault](answer, self)
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(self, message):
        self.send(400, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode())

    def start(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status, body, headers=None):
        self.start(status, {**(headers or {}), "Content-Length": str(len(body))})
        self.wfile.write(body)
