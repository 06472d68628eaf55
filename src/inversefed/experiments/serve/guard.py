"""Who gets an answer, and with which headers.

A page in another tab can send requests to this machine too. So an answer needs a `Host` that is this server's (a
foreign name that resolves here, by DNS rebinding, is none), no sign that another site asks, and the token: once in the
address, then in a cookie that scripts do not see and that other sites' requests do not carry.
"""

import ipaddress
import secrets
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["POLICY", "Guard", "allowed_hosts", "is_loopback"]

POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; frame-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""What a page may load: files of this server and nothing else; no style and no script inside the page."""

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_TOKEN = "token"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at that address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> frozenset[str]:
    """The names by which browsers may call a server that listens at an address.

    >>> sorted(allowed_hosts("127.0.0.1"))
    ['127.0.0.1', '::1', 'localhost']
    """
    own = {"127.0.0.1", "::1", "localhost"} if is_loopback(host) or _is_any(host) else set()
    return frozenset(own | ({socket.gethostname().lower()} if _is_any(host) else {host.lower()}))


@dataclass(frozen=True)
class Guard:
    """Lets requests through to an application.

    Args:
        app: what answers them.
        token: what they must bring.
        host: where the server listens.
        cookie: the name of its cookie; cookies know no port, so servers of one machine need names of their own.
    """

    app: ASGIApp
    token: str = field(repr=False)
    host: str = "127.0.0.1"
    cookie: str = "inversefed"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer: ASGIApp = self._instead(Request(scope)) or self.app
        await answer(scope, receive, _with_headers(send))

    def _instead(self, request: Request) -> Response | None:
        """What is answered in place of the page, if anything."""
        if not self._is_ours(request.headers.get("host", "")):
            return PlainTextResponse("This server has another name; open the address that it printed.", 403)
        if not _is_own_site(request):
            return PlainTextResponse("Another site asked for this.", 403)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("This page changes nothing.", 405, {"Allow": "GET, HEAD"})
        if self._is_token(request.query_params.get(_TOKEN)):
            return self._welcome(request)
        if self._is_token(request.cookies.get(self.cookie)):
            return None
        return PlainTextResponse("Open the address that `inversefed serve` printed; it holds a token.", 403)

    def _welcome(self, request: Request) -> Response:
        """Set the cookie, and lead to the same address without the token."""
        rest = urlencode([each for each in request.query_params.multi_items() if each[0] != _TOKEN])
        path = "/" + request.url.path.lstrip("/\\")  # //name would be another server
        answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
        return answer

    def _is_token(self, given: str | None) -> bool:
        return given is not None and secrets.compare_digest(given.encode(), self.token.encode())

    def _is_ours(self, header: str) -> bool:
        name = _host_of(header)
        return name in allowed_hosts(self.host) or (_is_any(self.host) and _is_address(name))


def _is_own_site(request: Request) -> bool:
    """Whether no other site asks, as far as the browser says; a link that is followed may be anywhere."""
    followed = (
        request.headers.get("sec-fetch-mode") == "navigate" and request.headers.get("sec-fetch-dest") == "document"
    )
    return followed or request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def _host_of(header: str) -> str:
    """The name in a `Host` header, without the port.

    >>> _host_of("LOCALHOST:80"), _host_of("[::1]:80"), _host_of("127.0.0.1")
    ('localhost', '::1', '127.0.0.1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


def _is_any(host: str) -> bool:
    """Whether an address stands for all of the machine's."""
    return _is_address(host) and ipaddress.ip_address(host).is_unspecified


def _is_address(name: str) -> bool:
    """Whether a name is an address: no name server was asked for it."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            start: MutableMapping[str, Any] = message
            headers = MutableHeaders(scope=start)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
