"""Debian's Chromium, driven through its own driver: one page, watched while it loads."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needed = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium: apt-get install chromium chromium-driver"
)

# Nothing but the page under test may be asked for anything, the browser's own errands included.
_FLAGS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-default-apps --disable-dev-shm-usage --hide-scrollbars
--window-size=1400,1600
""".split()
_ONLY_LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_PATIENCE_SECONDS = 30


class Look(NamedTuple):
    """A window and the colours that its user prefers."""

    width: int
    height: int
    scheme: str

    def __str__(self) -> str:
        return f"{self.width}x{self.height}-{self.scheme}"


DESKTOP, PHONE = (1280, 900), (390, 844)


class Browser:
    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, look: Look, headers: dict[str, str] | None = None) -> None:
        """Load a page from nothing, and forget what was watched before."""
        self._command("Emulation.setDeviceMetricsOverride", width=look.width, height=look.height,
                      deviceScaleFactor=1, mobile=look.width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": look.scheme}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        self._command("Network.setExtraHTTPHeaders", headers=headers or {})
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self._log(kind)
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def wait_for(self, selector: str) -> WebElement:
        """The element, once a page is loaded that has it."""
        WebDriverWait(self.driver, _PATIENCE_SECONDS).until(lambda _: self._is_loaded_with(selector))
        return self.find(selector)

    def type(self, *keys: str) -> None:
        """Where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def roles(self) -> list[str]:
        """What a screen reader is told that there is."""
        self._command("Accessibility.enable")
        nodes = self._command("Accessibility.getFullAXTree")["nodes"]
        return [node["role"]["value"] for node in nodes if not node["ignored"]]

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of JavaScript, which runs although the page may have none of its own."""
        return self.driver.execute_script(script, *arguments)

    def requested(self) -> list[str]:
        """What was asked for since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    def complaints(self) -> list[str]:
        """What stands in the console since the page was opened."""
        return [entry["message"] for entry in self._log("browser")]

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._command("Page.captureScreenshot")["data"])

    def _is_loaded_with(self, selector: str) -> bool:
        script = "return document.readyState === 'complete' && document.querySelector(arguments[0]) !== null"
        return bool(self.run(script, selector))

    def _log(self, kind: str) -> list[dict[str, Any]]:
        """What came since it was asked for last."""
        entries: list[dict[str, Any]] = self.driver.execute("getLog", {"type": kind})["value"]
        return entries

    def _command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in ``folder``, ended with its driver."""
    options = Options()
    options.binary_location = CHROMIUM or ""
    for flag in (*_FLAGS, _ONLY_LOOPBACK, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        driver.set_page_load_timeout(_PATIENCE_SECONDS)
        yield Browser(driver)
    finally:
        driver.quit()
