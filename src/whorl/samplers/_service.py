"""One HTTP server: a request to it, and what its answer means before it is read (ours).

Redirects are never followed, bodies are read in pieces up to a cap and within one time limit, certificates are verified.
Whatever the HTTP library raises is translated here; its own texts can hold addresses and headers.
"""

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

from pydantic import SecretStr

from whorl import __version__
from whorl._readers import limits
from whorl._readers.subject import size_text
from whorl.errors import RemoteError, UnsafeFile, WhorlError, safe_name
from whorl.samplers._endpoint import Endpoint
from whorl.samplers._foreign import Mask
from whorl.samplers._openai import REFUSED, Failure, TryLater, error_message
from whorl.samplers.limits import Clock, Use, retry_after_s

if TYPE_CHECKING:
    import httpx2

CONNECT_S = 10.0
_RETRIED = (408, 425, 429)  # and everything from 500


class Service:
    """One server: how to reach it, and what its answers mean before they are read.

    Args:
        endpoint: Its checked address.
        key: Sent as bearer token; None sends none.
        key_env: Where the key came from, for messages.
        timeout_s: Longest time for one whole answer, seconds.
        transport: In place of the network.
        clock: The time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: SecretStr | None,
        key_env: str | None,
        timeout_s: float,
        transport: "httpx2.AsyncBaseTransport | None",
        clock: Clock,
    ) -> None:
        self.endpoint, self.clock = endpoint, clock
        self.answered = False  # whether the address has proved right
        self._key, self._key_env, self._timeout_s, self._transport = key, key_env, timeout_s, transport

    def client(self, concurrency: int) -> "httpx2.AsyncClient":
        """Connections for one run. Proxies are used for https to a name; a checked address is reached directly."""
        import httpx2

        proxied = self.endpoint.url.startswith("https://") and self.endpoint.server_name is None
        return httpx2.AsyncClient(
            follow_redirects=False,  # the key would follow
            trust_env=proxied,
            verify=httpx2.create_ssl_context(),  # also with the user's own authorities, SSL_CERT_FILE
            transport=self._transport,
            timeout=httpx2.Timeout(None, connect=min(CONNECT_S, self._timeout_s)),
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    async def post(self, client: "httpx2.AsyncClient", body: bytes, mask: Mask) -> bytes:
        """Send one request; the body of its good answer.

        The time-out is for the whole answer, so that a server cannot hold a connection by sending a byte now and then.

        Raises:
            Failure: refused for good.
            TryLater: no answer, or one that may be another in a moment.
            RemoteError: wrong key, no such model, no secure connection.
            UnsafeFile: redirect to another host; body over the cap.
        """
        import httpx2

        try:
            async with (
                asyncio.timeout(self._timeout_s),
                client.stream(
                    "POST", self.endpoint.url, content=body, headers=self._headers(), extensions=self._extensions()
                ) as response,
            ):
                self._refuse_redirect(response)
                answer = await self._body(response)
        except TimeoutError:
            raise TryLater("Timeout", f"no whole answer within {self._timeout_s:g} s") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._no_connection(error) from None
        except httpx2.HTTPError as error:
            raise TryLater("NoConnection", f"no whole answer ({type(error).__name__})") from None
        self._refuse_status(response, answer, mask)
        return answer

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        headers["User-Agent"] = f"whorl/{__version__}"
        if self.endpoint.server_name is not None:
            headers["Host"] = self.endpoint.host
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return headers

    def _extensions(self) -> dict[str, str]:
        return {"sni_hostname": self.endpoint.server_name} if self.endpoint.server_name is not None else {}

    async def _body(self, response: "httpx2.Response") -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Failure("MalformedAnswer", "a compressed answer, which was not asked for")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > limits.MAX_ANSWER:
                found, most = (
                    f"an answer over {size_text(limits.MAX_ANSWER)}",
                    f"at most {size_text(limits.MAX_ANSWER)}",
                )
                raise UnsafeFile("endpoint", self.endpoint.host, found, most, "Ask for shorter answers, or its owner.")
        return bytes(body)

    def _refuse_redirect(self, response: "httpx2.Response") -> None:
        if not response.is_redirect:
            return
        import httpx2

        try:
            target = httpx2.URL(self.endpoint.url).join(response.headers.get("Location", ""))
        except httpx2.InvalidURL:
            target = None
        here = httpx2.URL(self.endpoint.url)
        if target is None or (target.scheme, target.host, target.port) != (here.scheme, here.host, here.port):
            where = safe_name(target.host, 80) if target is not None else "nowhere"
            found, advice = (
                f"a redirect to another host, '{where}'",
                "The key was not sent there: ask for the right address.",
            )
            raise UnsafeFile("endpoint", self.endpoint.host, found, "an answer", advice)
        raise RemoteError(f"The endpoint '{self.endpoint.host}' redirects to another path. Give that address instead.")

    def _refuse_status(self, response: "httpx2.Response", body: bytes, mask: Mask) -> None:
        status, host = response.status_code, self.endpoint.host
        if status == 200:
            return
        if status in (401, 403):
            where = f"the key in '{safe_name(self._key_env)}'" if self._key_env else "requests without a key"
            raise RemoteError(f"The endpoint '{host}' does not accept {where} (status {status}).")
        said = error_message(body, mask)
        because = f": {said}" if said else ""
        if status in (402, 404, 405, 410):
            hint = "Check its account." if status == 402 else "Check model name and address; it usually ends in /v1."
            raise RemoteError(f"The endpoint '{host}' refuses this model or address (status {status}{because}). {hint}")
        if status in _RETRIED:
            kind = "RateLimited" if status == 429 else "ServerError"
            wait_s = retry_after_s(response.headers.get("Retry-After"), self.clock.utc())
            raise TryLater(kind, f"status {status}{because}", use=Use(1), wait_s=wait_s)
        if status >= 500:
            wait_s = retry_after_s(response.headers.get("Retry-After"), self.clock.utc())
            raise TryLater("ServerError", f"status {status}{because}", wait_s=wait_s)
        raise Failure(REFUSED, f"status {status}{because}", use=Use(1))

    def _no_connection(self, error: Exception) -> WhorlError | Failure:
        causes = _causes(error)
        host = self.endpoint.host
        if secure := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
            why = getattr(secure, "verify_message", "") or secure.reason or "failed"
            return RemoteError(
                f"The endpoint '{host}' offers no secure connection ({safe_name(why, 80)}). Nothing was sent."
            )
        names = (
            (socket.gaierror, "no such host"),
            (ConnectionRefusedError, "connection refused"),
            (TimeoutError, "no connection in time"),
        )
        why = next((text for kind, text in names if any(isinstance(cause, kind) for cause in causes)), "no connection")
        return TryLater(
            "NoConnection", f"{why}: is it running, and is the address right", wrong_address=True, use=Use()
        )


def _causes(error: BaseException) -> list[BaseException]:
    """An error and everything behind it."""
    found: list[BaseException] = []
    rest: list[BaseException | None] = [error]
    while rest:
        cause = rest.pop()
        if cause is not None and cause not in found:
            found.append(cause)
            rest += [cause.__cause__, cause.__context__, *getattr(cause, "exceptions", ())]
    return found
