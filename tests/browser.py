"""A page in headless Chromium, without network, as a user sees and handles it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


class Page:
    """One browser; `open` shows a file in it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1200, height: int = 900) -> None:
        """Show ``path`` in the light, on a screen of that size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.media()
        self.driver.get(path.resolve().as_uri())
        assert self.run("return document.documentElement.dataset.ready") == "yes", self.errors()

    def media(self, kind: str = "screen", *, dark: bool = False) -> None:
        """Another medium, or the colours of the night."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=kind, features=[scheme])
        # the page is told of it with the next frame
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[0]()))"
        self.driver.execute_async_script(frames)

    def command(self, name: str, **values: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, values)

    def run(self, script: str, *arguments: Any) -> Any:
        """What ``script`` returns."""
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found

    def keys(self, selector: str, *keys: str) -> None:
        """Focus an element, as Tab would, and press keys."""
        self.run("document.querySelector(arguments[0]).focus()", selector)
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def drag(self, selector: str, start: tuple[float, float], to: tuple[float, float]) -> None:
        """From one place of an element to another, as shares of its size."""
        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        width, height = element.size["width"], element.size["height"]
        places = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in (start, to)]
        chain = ActionChains(self.driver).move_to_element_with_offset(element, *places[0])
        chain.click_and_hold().move_to_element_with_offset(element, *places[1]).release().perform()

    def pixels(self, selector: str = ".chart canvas") -> str:
        """A digest of what a canvas shows."""
        shown = self.run(f"return document.querySelector({selector!r}).toDataURL()")
        return hashlib.sha256(shown.encode()).hexdigest()

    def colours(self, selector: str = ".chart canvas") -> int:
        """How many different colours a canvas shows."""
        script = """
            const canvas = document.querySelector(arguments[0]);
            const size = [canvas.width, canvas.height];
            const data = canvas.getContext("2d").getImageData(0, 0, ...size).data;
            return new Set(new Uint32Array(data.buffer)).size"""
        number: int = self.run(script, selector)
        return number

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.command("Page.printToPDF")["data"])

    def errors(self) -> list[str]:
        """What the console was told since last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Debian's Chromium with the empty profile directory ``profile``, for as long as needed."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        yield Page(driver)
    finally:
        driver.quit()
