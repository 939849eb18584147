"""Pages in a headless Chromium, spoken to through pipes in its DevTools protocol: nothing to install, no port."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


class Page:
    """One page of given width and height in CSS pixels."""

    def __init__(self, reading: int, writing: int) -> None:
        self._stream = os.fdopen(reading, "rb")
        self._writing = writing
        self._number = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        #: What the page wrote to its console, and what it was refused.
        self.complaints: list[str] = []
        self._ask("Log.enable")
        self._ask("Runtime.enable")
        self._ask("Page.enable")

    def open(self, path: Path, *, width: int, height: int = 900) -> None:
        """Load a file, whole."""
        phone = width < 600
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._ask("Page.navigate", url=path.as_uri())
        self.value("new Promise(done => { if (document.readyState == 'complete') done(); else onload = done; })")

    def value(self, script: str) -> Any:
        """Of an expression, in the page."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _ask(self, method: str, **params: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(answer["params"]))

    def _read(self) -> bytes:
        found = bytearray()
        while (byte := self._stream.read(1)) != b"\0":
            assert byte, "the browser is gone"
            found += byte
        return bytes(found)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a new browser, whose profile is in a folder."""
    assert CHROMIUM is not None
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()

    def three_and_four() -> None:
        a, b = os.dup(their_in), os.dup(their_out)
        os.dup2(a, 3)
        os.dup2(b, 4)

    command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        command, preexec_fn=three_and_four, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Page(our_in, our_out)
    finally:
        process.kill()
        process.wait()
        os.close(our_out)
