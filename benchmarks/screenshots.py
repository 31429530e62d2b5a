"""Take the screenshots of the app's pages that the README and the docs show.

    python benchmarks/screenshots.py RUNS_DIR [docs] [--all]

RUNS_DIR holds a finished run called demo, such as `make demo` leaves in runs/; it is copied, as a verdict is given on the
page Label. Pages are 1200 pixels wide and light; with --all there are more of them, and each is taken light, dark and 400 pixels
wide, the whole of it, for somebody to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import sync_playwright

from tiebreak import app
from tiebreak.app.home import Home

RUN = "demo"
WIDTH, HEIGHT, PHONE = 1200, 900, 400


def stages(page: Any) -> None:
    page.locator("table.stages").wait_for()


def curves(page: Any) -> None:
    page.get_by_role("tab", name="Curves").click()
    page.locator(".charts svg").last.wait_for()


def report(page: Any) -> None:
    page.get_by_role("tab", name="Report").click()
    page.frame_locator("iframe.report").locator("h1").wait_for()


def form(page: Any) -> None:
    page.locator(".recipe .cost p").wait_for()


def label(page: Any) -> None:
    """Judge twos until a judge has said something of one."""
    page.get_by_label("Your name").fill("Eva")
    page.get_by_label("At random").check()
    page.get_by_role("button", name="Start").click()
    page.locator(".desk:focus").wait_for()
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowDown"):
        before = page.locator(".desk").get_attribute("data-question")
        page.keyboard.press(key)
        page.locator(f".desk:not([data-question='{before}'])").wait_for()


def pairs(page: Any) -> None:
    page.get_by_label("Pairs", exact=True).check()
    page.locator(".data .two").first.wait_for()


def playground(page: Any) -> None:
    """Have base and tuned answer an example."""
    page.wait_for_function("[...document.querySelectorAll('input')].some(each => each.value.endsWith('tuned'))")
    page.get_by_label("Example, from the run's test prompts", exact=True).click()
    page.get_by_role("option").first.click()
    page.wait_for_function("document.querySelector('.says textarea').value")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("ended by itself").or_(page.get_by_text("cut at")).nth(1).wait_for()


class Shot(NamedTuple):
    """One page: its address, and what is done before it is taken."""

    address: str
    act: Callable[[Any], None]


SHOTS = {
    "runs": Shot(f"?run={RUN}", stages),
    "start": Shot("start", form),
    "label": Shot(f"label?run={RUN}", label),
    "data": Shot(f"data?run={RUN}", pairs),
    "playground": Shot(f"playground?run={RUN}", playground),
}
MORE = {"curves": Shot(f"?run={RUN}", curves), "report": Shot(f"?run={RUN}", report)}
LOOKS = {"light": ("light", WIDTH), "dark": ("dark", WIDTH), "phone": ("light", PHONE), "phone-dark": ("dark", PHONE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    runs, folder = options.runs.resolve(), options.folder.resolve()
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with served(runs) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        for name, shot in (SHOTS | MORE if options.all else SHOTS).items():
            for look, (scheme, width) in (LOOKS if options.all else {"": ("light", WIDTH)}).items():
                context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
                page = context.new_page()
                page.set_default_timeout(120_000)
                page.goto(f"{address}{shot.address}")
                shot.act(page)
                page.wait_for_timeout(500)  # of what moves
                path = folder / f"app-{name}{'-' * bool(look)}{look}.png"
                page.screenshot(path=path, full_page=options.all)
                context.close()
                print(path, flush=True)
        browser.close()


@contextlib.contextmanager
def served(runs: Path) -> Iterator[str]:
    """Serve a copy of the run, and yield the address; what the pages say of where it lies is the same everywhere."""
    with tempfile.TemporaryDirectory() as copy, contextlib.chdir(copy):
        shutil.copytree(runs / RUN, Path("runs") / RUN)
        demo = app.serve(Home.of("runs"))
        try:
            yield demo.local_url
        finally:
            demo.close(verbose=False)


if __name__ == "__main__":
    main()
