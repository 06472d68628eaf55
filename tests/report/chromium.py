"""A page in Chromium without a window, watched through DevTools: what it asks for, says and shows.

The browser is spoken to over a pipe, so that nothing listens on a port.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)

_LAUNCH = """
import fcntl, os, sys
there = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(there[0], 3)
os.dup2(there[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and writes to 4."""


@dataclass
class Visit:
    """What happened while a page was open."""

    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    screenshot: bytes = b""


class Browser:
    """One browser with one page, closed at the end of a `with`."""

    def __init__(self, seconds: float = 120) -> None:
        self._deadline, self._count, self._rest = time.monotonic() + seconds, 0, b""
        self._events: list[dict] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self) -> "Browser":
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            target = self.call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
            attach = {"targetId": target, "flatten": True}
            self._session = self.call("Target.attachToTarget", attach, session=None)["sessionId"]
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        self._profile.cleanup()

    def visit(self, file: Path, size: tuple[int, int], questions: dict[str, str]) -> Visit:
        """Open a file in a window of that size, and evaluate expressions in it."""
        self._events.clear()
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", metrics)
        self.call("Page.navigate", {"url": file.as_uri()})
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()
        visit = Visit()
        for name, expression in questions.items():
            found = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True})
            visit.answers[name] = found["result"].get("value", found)
        visit.screenshot = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        for event in self._events:
            _note(visit, event["method"], event["params"], file)
        return visit

    def call(self, method: str, params: dict | None = None, session: str | None = "") -> dict:
        """Send a command and wait for its answer; what happens meanwhile is kept."""
        self._count += 1
        message: dict = {"id": self._count, "method": method, "params": params or {}}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            got = os.read(self._from, 2**16)
            if not got:
                raise ConnectionError("the browser has gone")
            self._rest += got
        line, self._rest = self._rest.split(b"\0", 1)
        message: dict = json.loads(line)
        if "method" in message:
            self._events.append(message)
            if message["method"] == "Page.javascriptDialogOpening":
                self._send_only("Page.handleJavaScriptDialog", {"accept": False})
        return message

    def _send_only(self, method: str, params: dict) -> None:
        message = {"id": 10**6, "method": method, "params": params, "sessionId": self._session}
        os.write(self._to, json.dumps(message).encode() + b"\0")


def _note(visit: Visit, method: str, params: dict, file: Path) -> None:
    match method:
        case "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url != file.as_uri() and not url.startswith("data:"):
                visit.requests.append(url)
        case "Page.javascriptDialogOpening":
            visit.dialogs.append(params["message"])
        case "Log.entryAdded":
            visit.messages.append(params["entry"]["text"])
        case "Runtime.exceptionThrown" | "Runtime.consoleAPICalled":
            visit.messages.append(json.dumps(params))
