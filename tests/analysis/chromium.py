"""A headless Chromium driven over a pipe, by its own protocol: no driver, no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--disable-sync", "--disable-dev-shm-usage", "--force-device-scale-factor=1"),
)


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab. `errors` holds what its console complained of, and every request that left the page."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, answers = os.pipe(), os.pipe()  # (read, write)
        inside = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands[0], answers[1])]  # 3 and 4 are free
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = os.posix_spawn(
            program,
            [program, *FLAGS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
            dict(os.environ),
            file_actions=[
                *((os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)),
                *((os.POSIX_SPAWN_DUP2, end, fixed) for end, fixed in zip(inside, (3, 4), strict=True)),
            ],
        )
        for end in (commands[0], answers[1], *inside):
            os.close(end)
        self._to, self._from = commands[1], answers[0]
        self._buffer = b""
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        try:
            targets = self._send("Target.getTargets")["targetInfos"]
            tab = next(target["targetId"] for target in targets if target["type"] == "page")
            self._session = self._send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with suppress(EOFError, OSError, RuntimeError):
            self._send("Browser.close")
        for end in (self._to, self._from):
            os.close(end)
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def _send(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        text = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._from, 1 << 20)
            if not more:
                raise EOFError("chromium is gone")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            thrown = about["exceptionDetails"]
            self.errors.append(str(thrown.get("exception", {}).get("description") or thrown["text"]))
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in about["args"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.errors.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"].split(",")[0][:200])

    def call(self, method: str, **parameters: Any) -> Any:
        """A command to the tab."""
        return self._send(method, self._session, **parameters)

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load `file` by its file:// address and wait until its scripts have run."""
        self.errors.clear()
        self.requests.clear()
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.resolve().as_uri())
        loaded = "document.readyState === 'complete' ? done() : addEventListener('load', done)"
        self.evaluate(f"new Promise(done => {loaded})")
        self.settle()

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def settle(self) -> None:
        """Two frames: layout and observers are done."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", expression))
        return answer["result"].get("value")

    def middle(self, selector: str, at: int = 0) -> tuple[float, float]:
        """Where the element stands, scrolled into view."""
        box = self.evaluate(
            f"(() => {{ const one = document.querySelectorAll({json.dumps(selector)})[{at}]; if (!one) return null;"
            "one.scrollIntoView({block: 'center', behavior: 'instant'}); const b = one.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        if box is None:
            raise LookupError(f"no element {at} of {selector}")
        self.settle()
        return box[0], box[1]

    def hover(self, selector: str, at: int = 0) -> None:
        x, y = self.middle(selector, at)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def click(self, selector: str, at: int = 0) -> None:
        """A real click, which whatever lies on top would take."""
        x, y = self.middle(selector, at)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)
        self.settle()

    def choose(self, selector: str, option: str) -> None:
        """Take an option of a `<select>` by its text."""
        self.evaluate(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)});"
            f"const at = [...box.options].findIndex(one => one.text === {json.dumps(option)});"
            "if (at < 0) throw new Error('no such option');"
            "box.selectedIndex = at; box.dispatchEvent(new Event('change')); })()"
        )
        self.settle()

    def text(self, selector: str) -> list[str]:
        """What is shown of each element."""
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.innerText)")

    def count(self, selector: str) -> int:
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        file.write_bytes(base64.b64decode(answer["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
