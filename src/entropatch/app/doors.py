"""Who may ask the page's server, and what its answers allow a browser to do."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

# Nothing but this server is ever asked for anything, whatever a version of Gradio or a picture's name may contain.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; form-action 'self'"
)


class Doors:
    """An ASGI application in front of another: requests of other pages are refused, answers carry the policy.

    A page somewhere else can point its own name at this machine (DNS rebinding) and then ask as if it were this page;
    but the browser still sends that name as Host, and the page's address as Origin. So a request must name this server
    by an address or by a name of this machine, and must not come from another page.

    Args:
        app: what is behind the doors.
        host: what the server listens on.
        names: further names under which it may be asked, such as that of a proxy.
    """

    local: bool
    names: set[str]

    def __init__(self, app: Any, host: str, names: Iterable[str] = ()):
        self.app = app
        self.local = is_loopback(host)
        own = () if self.local else (host, socket.gethostname(), socket.getfqdn(), f"{socket.gethostname()}.local")
        self.names = {name.lower().rstrip(".") for name in ("localhost", *own, *names)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif not self.lets_in(dict(scope["headers"])):
            await _refuse(scope, send)
        else:
            await self.app(scope, receive, _with_policy(send) if scope["type"] == "http" else send)

    def lets_in(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request with these headers is of this page, or of no page at all."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        origin = headers.get(b"origin")
        if not self._is_own(host):
            return False
        return origin is None or urlsplit(origin.decode("latin-1").lower()).netloc == host

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.rstrip(".") in self.names:
            return True
        try:
            # Only a name can be made to point elsewhere; an address is what it is.
            return ip_address(name).is_loopback or not self.local
        except ValueError:
            return False


def is_loopback(host: str) -> bool:
    """Whether a server that listens there is reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str) -> int:
    """A port of that address, of either version of IP, on which nothing listens. Raises OSError for no address."""
    family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.bind(place)
        return int(listener.getsockname()[1])


def _with_policy(send: Any) -> Any:
    async def sending(event: Any) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [*event["headers"], (b"content-security-policy", POLICY.encode())]
        await send(event)

    return sending


async def _refuse(scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    text = b"Refused: this page answers under the address it was opened with only; see --allow-host."
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": text})
