"""A headless Chromium that opens a page from disk, by its debugging protocol over aiohttp."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "View", "visit"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 60.0  # seconds for one answer; a loaded machine starts a browser slowly

# Brings every cloud into view, waits for pictures, and says what is there.
_LOOK = """(async () => {
  for (const figure of document.querySelectorAll("figure[data-cloud]")) {
    figure.scrollIntoView();
    for (let k = 0; k < 200 && !figure.querySelector("canvas"); k++) await new Promise((r) => setTimeout(r, 10));
  }
  const pictures = [...document.images];
  await Promise.all(pictures.map((one) => one.decode().catch(() => null)));
  await new Promise((r) => setTimeout(r, 200));
  const canvases = [...document.querySelectorAll("canvas")];
  const inked = (one) => one.width > 0 &&
    one.getContext("2d").getImageData(0, 0, one.width, one.height).data.some((v) => v);
  scrollTo(0, 0);
  return {
    pictures: pictures.length, broken: pictures.filter((one) => !one.naturalWidth).length,
    turnable: document.querySelectorAll("figure[data-cloud]").length,
    canvases: canvases.length, blank: canvases.filter((one) => !inked(one)).length,
    width: innerWidth, needed: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    scripts: document.scripts.length, title: document.title,
  };
})()"""
_TURN = """(async () => {
  const canvas = document.querySelector("canvas"), before = canvas.toDataURL();
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  await new Promise((r) => setTimeout(r, 200));
  return before !== canvas.toDataURL();
})()"""


@dataclass
class View:
    """What a browser found on a page.

    found     pictures, broken, turnable, canvases, blank, width, needed, height, ground, ink, title
    turned    whether a key turned the first cloud; None where there is none
    errors    of the console and of scripts
    requests  URLs asked for, the page's own and data: excepted
    png       a picture of the top of the page
    """

    found: dict[str, Any] = field(default_factory=dict)
    turned: bool | None = None
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    png: bytes = b""


def visit(page: Path, folder: Path, *, width: int, dark: bool) -> View:
    """Open a page of this disk in a window of that width, light or dark. folder  for the browser's own files."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    environment = {**os.environ, "HOME": str(folder)}
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        return asyncio.run(_visit(page.resolve().as_uri(), folder, browser, width, dark))
    finally:
        browser.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            browser.wait(10)
        browser.kill()
        browser.wait()


async def _visit(url: str, folder: Path, browser: subprocess.Popen[bytes], width: int, dark: bool) -> View:
    import aiohttp

    view, number = View(), 0
    async with aiohttp.ClientSession() as session:
        port = await _port(folder, browser)
        async with session.get(f"http://127.0.0.1:{port}/json") as answer:
            target = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            loaded = asyncio.Event()
            waiting: dict[int, asyncio.Future[Any]] = {}

            async def listen() -> None:
                async for message in socket:
                    said = json.loads(message.data)
                    if "id" in said:
                        waiting.pop(said["id"]).set_result(said)
                    else:
                        _note(view, said, url, loaded)

            async def ask(method: str, **params: Any) -> Any:
                nonlocal number
                number += 1
                waiting[number] = asyncio.get_running_loop().create_future()
                await socket.send_json({"id": number, "method": method, "params": params})
                answer = await asyncio.wait_for(waiting[number], _PATIENCE)
                assert "error" not in answer, answer
                return answer["result"]

            async def value(script: str) -> Any:
                answer = await ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
                assert "exceptionDetails" not in answer, answer
                return answer["result"]["value"]

            listener = asyncio.create_task(listen())
            for domain in ("Page", "Runtime", "Log", "Network"):
                await ask(f"{domain}.enable")
            await ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await ask("Emulation.setEmulatedMedia", features=[scheme])
            await ask("Page.navigate", url=url)
            await asyncio.wait_for(loaded.wait(), _PATIENCE)
            view.found = await value(_LOOK)
            view.turned = await value(_TURN) if view.found["canvases"] else None
            shot = await ask("Page.captureScreenshot", format="png")
            view.png = base64.b64decode(shot["data"])
            listener.cancel()
    return view


def _note(view: View, said: dict[str, Any], page: str, loaded: asyncio.Event) -> None:
    method, params = said["method"], said.get("params", {})
    if method == "Page.loadEventFired":
        loaded.set()
    elif method == "Runtime.exceptionThrown":
        view.errors.append(json.dumps(params["exceptionDetails"])[:500])
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
        view.errors.append(json.dumps(params["args"])[:500])
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        view.errors.append(params["entry"]["text"])
    elif method == "Network.requestWillBeSent":
        url = params["request"]["url"]
        if not url.startswith("data:") and url != page and not url.startswith(f"{page}#"):
            view.requests.append(url)


async def _port(folder: Path, browser: subprocess.Popen[bytes]) -> str:
    for _ in range(int(_PATIENCE / 0.1)):
        assert browser.poll() is None, "the browser ended at once"
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / "DevToolsActivePort").read_text().splitlines()
            if lines:
                return lines[0]
        await asyncio.sleep(0.1)
    raise AssertionError("the browser did not say where it listens")
