"""A headless Chromium, and the app's pages in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from conftest import missing

LEAVING = ("AbortError: signal is aborted", "Connection errored out")
"""What Gradio says of a stream that is open while its page is left, just before the next one is asked for: nobody can read it."""
AXE = find_spec("axe_playwright_python")
"""Carries axe-core."""


@contextmanager
def served(root: Path, **how: Any) -> Iterator[str]:
    """Serve the pages of a directory of runs, and yield their address, which ends in a slash."""
    from tiebreak import app
    from tiebreak.app.home import Home

    demo = app.serve(Home.of(root, may_start=how.pop("start", True)), **how)
    try:
        yield demo.local_url
    finally:
        demo.close(verbose=False)


@contextmanager
def tab(
    chromium: Any,
    *,
    scheme: str = "light",
    width: int = 1200,
    height: int = 900,
    expected: Callable[[str], bool] = lambda _: False,
) -> Iterator[Any]:
    """Yield a tab in which nothing may be said on the console, no dialog may open and nothing be fetched from elsewhere."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, heard, leaving = context.new_page(), list[str](), list[str]()

    def hear(what: str) -> None:
        if not expected(what):
            (leaving if any(words in what for words in LEAVING) else heard).append(what)

    def ask(request: Any) -> None:
        if request.is_navigation_request():
            leaving.clear()
        if _elsewhere(request.url):
            hear(f"fetched {request.url}")

    page.on("console", lambda message: hear(f"{message.type}: {message.text}") if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: hear(f"uncaught: {error}"))
    page.on("dialog", lambda dialog: (hear(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", ask)
    page.on("response", lambda response: hear(f"{response.status} {response.url}") if response.status >= 400 else None)
    page.set_default_timeout(60_000)  # machines are shared
    try:
        yield page
        assert not heard + leaving, "\n".join(heard + leaving)
    finally:
        context.close()


def _elsewhere(url: str) -> bool:
    return re.match(r"(https?://(127\.0\.0\.1|localhost)(:\d+)?/|data:|blob:|about:)", url) is None


def accessibility(page: Any) -> list[str]:
    """Return what axe-core finds wrong with a page by WCAG 2.1 A and AA, contrast included."""
    if AXE is None or AXE.origin is None:
        missing("axe-core is missing: pip install axe-playwright-python")
        return []
    if not page.evaluate("'axe' in window"):
        page.evaluate(Path(AXE.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa'], iframes: false})")
    return [
        f"{rule['id']}: {node['html'][:200]} {' '.join(node['failureSummary'].split())}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def scripts_ran(page: Any) -> bool:
    """Whether text that tries to run as a script (it sets `window.taken`) did."""
    return bool(page.evaluate("'taken' in window"))
