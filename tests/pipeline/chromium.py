"""A headless Chromium spoken to over its debugging pipe: no library, no port, no network.

Commands go in as JSON on descriptor 3 and answers come out on descriptor 4, each ended by a zero byte (`--remote-debugging-pipe`). It shows
a page at an exact width, dark or light, which the command line's window sizes cannot below 500 px.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_DESCRIPTORS = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"


def find_chromium() -> str | None:
    """The path of an installed Chromium, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One running browser with one page."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.on_page(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def call(self, method: str, values: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """The result of one command; events that come before it are kept."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": values or {}, **more}
        os.write(self._to, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != self._number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result

    def on_page(self, method: str, **values: Any) -> dict[str, Any]:
        """The result of one command to the page."""
        return self.call(method, values, sessionId=self._session)

    def show(self, page: Path, width_px: int, scheme: str) -> None:
        """Load a file at a width in CSS pixels, dark or light; returns when it has loaded."""
        self.on_page("Emulation.setDeviceMetricsOverride", width=width_px, height=900, deviceScaleFactor=1, mobile=width_px < 600)
        self.on_page("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.on_page("Page.navigate", url=page.absolute().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def value(self, script: str) -> Any:
        """What an expression gives on the page."""
        answer = self.on_page("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Console messages, log entries and exceptions since the page was asked for."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"])[:500] for event in self.events if event.get("method") in kinds]

    def fetched(self) -> list[str]:
        """What was asked for since, beside data inside the page."""
        urls = [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith("data:")]

    def picture(self) -> bytes:
        """The whole page as a PNG."""
        height = self.value("document.documentElement.scrollHeight")
        width = self.value("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16_000), "scale": 1}
        return base64.b64decode(self.on_page("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Chromium]:
    """A browser with a profile of its own, ended at the end."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"]
    command = [
        sys.executable,
        "-c",
        _DESCRIPTORS,
        str(theirs_in),
        str(theirs_out),
        program,
        *options,
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Chromium(ours_out, ours_in)
        yield browser
        browser.call("Browser.close")
    finally:
        os.close(ours_out)
        os.close(ours_in)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
