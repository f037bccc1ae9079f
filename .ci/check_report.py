"""Open the report of a sweep in headless Chromium and fail unless it stands by itself.

The page has to show its headings and a verdict, load every picture, log no error, ask for nothing outside itself, and
fit on a wide screen and on a phone's, light and dark. Chromium is driven through its DevTools pipe, so that the standard
library is enough.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

Message = dict[str, Any]

SECTIONS = ["verdict", "heat-maps", "best", "curves", "norms", "method", "cells"]
SCREENS = [(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")]
PATIENCE = 60.0
FLAGS = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # What the page asks for is counted; it does not have to be served.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

# What the page is, as its own engine sees it.
PROBE = """({
    language: document.documentElement.lang,
    title: document.title,
    headings: document.querySelectorAll('h1').length,
    sections: [...document.querySelectorAll('section[id]')].filter(s => s.querySelector('h2')?.innerText.trim()).map(s => s.id),
    verdict: [...document.querySelectorAll('#verdict p, #verdict li')].map(p => p.innerText.trim()).filter(Boolean),
    pictures: [...document.images].map(
        i => ({source: i.currentSrc.slice(0, 60), width: i.complete ? i.naturalWidth : 0, alt: i.alt})),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    height: document.documentElement.scrollHeight,
})"""


class ReportError(Exception):
    """What is wrong with the page, in one line."""


class Browser:
    """A Chromium, spoken to through a pipe: commands go out, events are kept in `events`."""

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        self.process, self.commands, self.answers = process, commands, answers
        self.events: list[Message] = []
        self._buffer = b""
        self._last = 0

    def call(self, method: str, session: str | None = None, **params: Any) -> Message:
        """Send a command and wait for its answer."""
        self._last += 1
        message: Message = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._last:
            self.events.append(answer)
        if "error" in answer:
            raise ReportError(f"Chromium refused {method}: {answer['error']['message']}")
        result: Message = answer["result"]
        return result

    def wait(self, method: str) -> None:
        """Wait until an event has come in."""
        while not any(event["method"] == method for event in self.events):
            self.events.append(self._receive())

    def settle(self, seconds: float) -> None:
        """Gather what still comes in within some seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if b"\0" in self._buffer or select([self.answers], [], [], left)[0]:
                self.events.append(self._receive())

    def _receive(self) -> Message:
        while b"\0" not in self._buffer:
            if not select([self.answers], [], [], PATIENCE)[0]:
                raise ReportError(f"Chromium said nothing for {PATIENCE:.0f} s")
            chunk = os.read(self.answers, 1 << 20)
            if not chunk:
                raise ReportError("Chromium ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: Message = json.loads(line)
        return message


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a Chromium with an empty profile and end it afterwards."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    binary = next((found for name in names if name and (found := shutil.which(name))), None)
    if binary is None:
        raise ReportError("no Chromium found; set CHROMIUM to its path")
    (its_commands, commands), (answers, its_answers) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = f'exec "$@" 3<&{its_commands} 4>&{its_answers}'
        process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", binary, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(its_commands, its_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_commands)
        os.close(its_answers)
        try:
            yield Browser(process, commands, answers)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(commands)
            os.close(answers)


def visit(browser: Browser, url: str, width: int, theme: str) -> tuple[Message, bytes]:
    """Open the page on a screen; return what it is and how it looks, and leave in `events` what it did."""
    browser.events.clear()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log"):
        browser.call(f"{domain}.enable", session)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.call("Emulation.setDeviceMetricsOverride", session, **screen)
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    browser.call("Emulation.setEmulatedMedia", session, features=scheme)
    browser.events.clear()
    browser.call("Page.navigate", session, url=url)
    browser.wait("Page.loadEventFired")
    browser.settle(0.3)
    probed = browser.call("Runtime.evaluate", session, expression=PROBE, returnByValue=True)
    if "exceptionDetails" in probed:
        raise ReportError(f"the page cannot be examined: {probed['exceptionDetails']['text']}")
    seen: Message = probed["result"]["value"]
    clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 16000), "scale": 1}
    shot = browser.call("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
    browser.call("Target.closeTarget", targetId=target)
    return seen, base64.b64decode(shot["data"])


def complaints(seen: Message, events: list[Message], url: str) -> Iterator[str]:
    """Say what is wrong with a page that was visited."""
    if not seen["language"] or not seen["title"] or seen["headings"] != 1:
        yield "the page lacks a language, a title or its one h1"
    if missing := [section for section in SECTIONS if section not in seen["sections"]]:
        yield f"no heading for {', '.join(missing)}"
    if len(seen["verdict"]) < 2:
        yield "the verdict is empty"
    if len(seen["pictures"]) < 3:
        yield f"{len(seen['pictures'])} pictures instead of 3"
    for picture in seen["pictures"]:
        if picture["width"] == 0:
            yield f"a picture did not load: {picture['source'] or picture['alt']!r}"
        if not picture["alt"]:
            yield f"a picture without alt text: {picture['source']}"
    if seen["overflow"] > 0:
        yield f"the page is {seen['overflow']} px wider than the screen"
    for event in events:
        yield from _misdeed(event["method"], event.get("params", {}), url)


def _misdeed(method: str, params: Message, url: str) -> Iterator[str]:
    """Say what is wrong with what the page did, if anything."""
    if method == "Network.requestWillBeSent":
        wanted = params["request"]["url"]
        if wanted != url and not wanted.startswith("data:"):
            yield f"asked for {wanted[:120]}"
    elif method == "Runtime.exceptionThrown":
        yield f"an exception: {params['exceptionDetails']['text']}"
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
        yield f"a console error: {[argument.get('value') for argument in params['args']]}"
    elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
        yield f"a logged error: {params['entry']['text']}"


def check(page: Path, shots: Path | None) -> None:
    """Visit the page on every screen; raise a ReportError that says all that is wrong."""
    if not page.is_file():
        raise ReportError(f"{page} does not exist")
    url, found = page.resolve().as_uri(), []
    with chromium() as browser:
        for width, theme in SCREENS:
            seen, picture = visit(browser, url, width, theme)
            found += [f"{width} px, {theme}: {complaint}" for complaint in complaints(seen, browser.events, url)]
            if shots:
                (shots / f"report-{width}-{theme}.png").write_bytes(picture)
    if found:
        raise ReportError("; ".join(dict.fromkeys(found)))


def main() -> int:
    """Check the report of a directory and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the sweep wrote index.html")
    parser.add_argument("--shots", type=Path, help="a directory for screenshots")
    arguments = parser.parse_args()
    if arguments.shots:
        arguments.shots.mkdir(parents=True, exist_ok=True)
    page = arguments.directory / "index.html"
    try:
        check(page, arguments.shots)
    except ReportError as failure:
        sys.stderr.write(f"FAIL {page}: {failure}\n")
        return 1
    sys.stdout.write(f"ok {page}: headings, verdict, pictures, no errors, no requests, {len(SCREENS)} screens\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
