"""Requests to an ASGI application, without a socket."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

TOKEN = "a-token-of-the-tests"
COOKIE = {"cookie": f"inversefed={TOKEN}"}


@dataclass
class Answer:
    """What came back."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def links(self) -> list[str]:
        return [each.replace("&amp;", "&") for each in re.findall(r'href="([^"]*)"', self.text)]


def get(
    app: Any,
    address: str,
    headers: dict[str, str] | None = None,
    method: str = "GET",
    until: Callable[[bytes], object] = lambda body: False,
) -> Answer:
    """Ask for an address; by default with the cookie, and as the server's own name.

    Args:
        app: the application.
        address: path and query.
        headers: beside the host; `None` for the cookie alone.
        method: of the request.
        until: told of the body so far; the client hangs up when it says so.
    """
    path, _, query = address.partition("?")
    given = {"host": "127.0.0.1:8765"} | (COOKIE if headers is None else headers)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8765),
    }
    return asyncio.run(_asked(app, scope, until))


async def _asked(app: Any, scope: dict, until: Callable[[bytes], object]) -> Answer:
    answer, gone, asked = Answer(), asyncio.Event(), False

    async def receive() -> dict:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        else:
            answer.body += message.get("body", b"")
            if until(answer.body) or not message.get("more_body"):
                gone.set()

    await asyncio.wait_for(app(scope, receive, send), 60)
    return answer
