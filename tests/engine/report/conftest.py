"""A real browser, if one is installed."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-default-apps", "--disable-extensions", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium without network; skips the test if it is not installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    with warnings.catch_warnings():
        # Selenium leaves its driver's sockets and pipes open for the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        started = webdriver.Chrome(options=options, service=service)
        started.execute_cdp_cmd("Network.enable", {})
        started.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        yield started
        started.quit()


@pytest.fixture
def page_uri(tmp_path: Path) -> Any:
    """`page_uri(html)` writes the page to a file and returns its URI."""

    def write(html: str) -> str:
        (tmp_path / "report.html").write_text(html, "utf-8")
        return (tmp_path / "report.html").as_uri()

    return write
