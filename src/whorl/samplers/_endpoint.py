"""Which addresses an endpoint may have, and what is shown of them: host and port, never a path or a secret (ours).

The key travels to this address, so plain http is for the same machine only (or an explicit wish). An address that came from
a file could point into the reader's own network: its host is resolved once, private and link-local addresses are refused,
and the connection goes to the address that was checked, because a name can resolve to another one a moment later.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from whorl.errors import RemoteError, UnsafeFile, UsageError, safe_name

Kind = Literal["completion", "chat"]

_ROUTES = {"completion": "/completions", "chat": "/chat/completions"}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|[0-9A-Fa-f:.]{2,45}")
_PATH = re.compile(r"[A-Za-z0-9/._~%:@+=,-]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Endpoint:
    """A checked address.

    Args:
        url: Where requests go; may hold the checked address in place of the name.
        host: Name and port as the user gave them: what messages, records and model ids show.
        local: Whether it is this machine.
        server_name: Name for the certificate and the `Host` header when `url` holds an address in its place.
    """

    url: str
    host: str
    local: bool
    server_name: str | None = None


def check_endpoint(url: str, kind: Kind, *, allow_http: bool = False, from_file: bool = False) -> Endpoint:
    """Check the address of an OpenAI-compatible server.

    Args:
        url: Base address, usually ending in `/v1`, or the full address of the route.
        kind: Route to use.
        allow_http: Allow unencrypted http to other machines.
        from_file: The address was read from a file and not typed by the user.

    Raises:
        UsageError: no address, a user name or password in it, a query, or http to another machine.
        UnsafeFile: `from_file`, and the host has a private or link-local address.
        RemoteError: `from_file`, and the host cannot be found.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError("The endpoint is no web address; write https://host/v1.") from None
    if "@" in parts.netloc:
        raise UsageError("The endpoint carries a user name or password; remove it. The key comes from the environment.")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise UsageError("The endpoint carries a query or fragment, which may be secret; write https://host/v1.")
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or not _PATH.fullmatch(parts.path):
        raise UsageError(f"The endpoint on '{safe_name(host, 80)}' is no web address; write https://host/v1.")
    shown_host = f"[{host}]" if ":" in host else host
    shown = shown_host if port is None else f"{shown_host}:{port}"
    local = _is_local(host)
    if parts.scheme == "http" and not (local or allow_http):
        raise UsageError(
            f"http to '{shown}' would send prompts and key unencrypted; use https, or allow http yourself."
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions") + _ROUTES[kind]
    if not from_file:
        return Endpoint(f"{parts.scheme}://{shown}{path}", shown, local)
    address = _public_address(host, port or (443 if parts.scheme == "https" else 80), shown)
    numeric = f"[{address}]" if address.version == 6 else str(address)
    place = numeric if port is None else f"{numeric}:{port}"
    return Endpoint(f"{parts.scheme}://{place}{path}", shown, local=False, server_name=host)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _public_address(host: str, port: int, shown: str) -> Address:
    """One address of a host, all of which must be public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that is too long for a host name
        raise RemoteError(f"The endpoint's host '{shown}' cannot be found.") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not all(is_public(address) for address in addresses):
        advice = "Look where the file comes from; if you trust it, type the address yourself."
        raise UnsafeFile("endpoint", shown, "a private or link-local address, read from a file", "a public one", advice)
    return min(addresses, key=lambda address: address.version)  # IPv4 first: it is reachable nearly everywhere


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also when an IPv6 address carries an IPv4 one."""
    carried: Address = address
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        carried = address.ipv4_mapped or address.sixtofour or nat64 or address
    return carried.is_global and not carried.is_multicast
