"""Reports in a browser without a window."""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TypeVar

import av
import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

T = TypeVar("T")

BROWSER = which("chromium") or which("chromium-browser") or which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (see README)")


@contextmanager
def opened(path: Path, width: int = 1200, height: int = 900) -> Iterator[Page]:
    """A page in Chromium; fails if it asks for anything or says anything on its console."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        # What runs tests is often root in a container, where Chromium has no sandbox.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url[:200]))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert not complaints, complaints


def picture(page: Page, selector: str) -> np.ndarray:
    """An element as it is seen: ``(H, W, 3)``, uint8."""
    with av.open(io.BytesIO(page.locator(selector).screenshot())) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def colour(page: Page, selector: str, across: float, down: float) -> list[int]:
    """Red, green and blue of a point of an element as it is seen; 0 to 1 across and down it."""
    pixels = picture(page, selector)
    height, width = pixels.shape[:2]
    return pixels[round(down * (height - 1)), round(across * (width - 1))].tolist()


def finally_seen(look: Callable[[], T], wanted: T, seconds: float = 10.0) -> T:
    """What ``look`` sees in the end: ``wanted``, or what is there after so many seconds.

    A busy browser draws a frame of a video some time after it moved to that frame.
    """
    end = time.monotonic() + seconds
    while (there := look()) != wanted and time.monotonic() < end:
        time.sleep(0.05)
    return there
