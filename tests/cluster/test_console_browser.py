# SPDX-License-Identifier: Apache-2.0
"""The console in a real browser: no violation of its policy, no stretch at 320 pixels, keyboard alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

PAGES = ["", "experts", "jobs", "consents", "rules", "changes", "deployments", "decisions", "usage", "audit"]


@pytest.fixture(params=[True, False], ids=["script", "no script"])
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """A browser page, with and without JavaScript; complaints of the browser are gathered."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": 320, "height": 700}, java_script_enabled=request.param
        )
        made = context.new_page()
        yield made
        browser.close()


def test_pages_are_quiet_and_narrow(town: Any, page: Page) -> None:
    """Signed in by keyboard alone, every page loads without a complaint and fits 320 pixels."""
    complaints: list[str] = []
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda sent: complaints.append(sent.url) if not sent.url.startswith(town.url) else None
    )
    page.goto(f"{town.url}/console/sign-in")
    page.focus("#key")
    page.keyboard.type(town.keys["ada"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{town.url}/console/")
    job = town.post("ada", "/jobs", name="j", dataset_id=town.ids["dataset"])
    for name in (*PAGES, "api", f"jobs/{job['id']}", "deployments/notes-research"):
        page.goto(f"{town.url}/console/{name}")
        box = page.locator("html").bounding_box()
        assert box is not None
        widest = page.locator("main, header, footer").evaluate_all(
            "found => Math.max(...found.map(one => one.getBoundingClientRect().right))"
        )
        assert widest <= 320, name
    assert complaints == []


def test_withdrawing_is_one_key_on_one_button(town: Any, page: Page) -> None:
    """The owner reaches the withdraw button by keyboard; one press and the page says that it happened."""
    page.goto(f"{town.url}/console/sign-in")
    page.fill("#key", town.keys["ada"])
    page.keyboard.press("Enter")
    page.wait_for_url(f"{town.url}/console/")
    page.goto(f"{town.url}/console/consents")
    page.get_by_role("button", name="Withdraw consent for north/notes v1").focus()
    page.keyboard.press("Enter")
    page.get_by_role("status").wait_for()
    assert "Withdrawn." in page.get_by_role("status").inner_text()
    assert town.get("dev", "/deployments/notes-research")["composition"]["members"] == []
