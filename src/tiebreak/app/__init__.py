"""The other door: Gradio pages over runs and models. `tiebreak.app(run)` opens them from a notebook."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from tiebreak.app.home import Home
from tiebreak.progress import say
from tiebreak.records import InputError
from tiebreak.run import Run

if TYPE_CHECKING:
    import gradio as gr

T = TypeVar("T")
FIRST_PORT = 7860
NO_ANALYTICS = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # nor is its newest version asked for
    # Of its own events: it would go through the last 10,000 after every one, such as each look at a curve.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
}
"""Gradio's settings, to be there before it is imported."""


def app(
    runs: Path | Run | str = Path("runs"), *, host: str = "127.0.0.1", port: int | None = None, share: bool = False,
    auth: tuple[str, str] | None = None, start: bool = True, inbrowser: bool = False,
) -> None:  # fmt: skip
    """Open the pages of a directory of runs, or of one run; in a notebook they show below the cell.

    `port`: default 7860, or the next free one. `auth`: user and password. `start`: whether the pages start runs. Who can
    start a run can run any program here, so that others than this machine's users need `auth` for it. Raises InputError.
    """
    demo = serve(Home.of(runs, may_start=start), host=host, port=port, share=share, auth=auth, inbrowser=inbrowser)
    if not hasattr(sys, "ps1"):  # neither a notebook nor a prompt, where other lines follow
        demo.block_thread()


def serve(
    home: Home, *, host: str = "127.0.0.1", port: int | None = None, share: bool = False,
    auth: tuple[str, str] | None = None, inbrowser: bool = False,
) -> gr.Blocks:  # fmt: skip
    """Start the pages and return them; they have `local_url`, `close()` and `block_thread()`. Raises InputError."""
    here = _loopback(host)
    if home.may_start and (share or not here) and auth is None:
        who = "--share opens them to everybody" if share else f"--host {host} opens them to others"
        raise InputError(f"the pages can start runs, and {who}; set --auth user:password, or --no-start to leave that out")
    if auth is not None and not all(auth):
        raise InputError("--auth: write user:password, neither of them empty")
    demo = build(home)
    from tiebreak.app import look

    middleware = []
    if here and not share:
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        # A page elsewhere may have its own name resolve to this machine (DNS rebinding): its requests carry that name.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", host]))
    launch = partial(
        demo.launch,
        server_name=host,
        server_port=_free(port),
        share=share,
        auth=auth,
        inbrowser=inbrowser,
        theme=look.theme(),
        css="\n".join([look.CSS, *(getattr(module, "CSS", "") for module in _pages(home).values())]),
        head=look.HEAD,
        footer_links=[],
        run_history=False,  # Gradio would keep what was typed in the browser
        enable_monitoring=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        app_kwargs={"middleware": middleware},
    )
    _in_a_loop(launch)
    say(f"{demo.share_url or demo.local_url} shows {home.what}; Ctrl-C stops the pages, and no run")
    return demo


def build(home: Home) -> gr.Blocks:
    """Return the pages, not yet started. Raises InputError where Gradio is missing."""
    if find_spec("gradio") is None:
        raise InputError("the pages need Gradio: pip install 'tiebreak[app]'")
    os.environ |= NO_ANALYTICS
    import gradio as gr

    def made() -> gr.Blocks:
        demo = gr.Blocks(title="tiebreak", analytics_enabled=False)
        with demo:
            demo.pages = [("", "Runs", True)]  # which Gradio calls Home
        for title, module in _pages(home).items():
            with demo if title == "Runs" else demo.route(title):
                module.page(home)
        return demo

    return _in_a_loop(made)


def _pages(home: Home) -> dict[str, ModuleType]:
    """Return the module of each page: `page(home)` builds it; it may have a CSS of its own."""
    from tiebreak.app import data, label, playground, runs, start

    begin = {"Start": start} if home.may_start and not home.only else {}
    return {"Runs": runs, **begin, "Label": label, "Data": data, "Playground": playground}


def _in_a_loop(make: Callable[[], T]) -> T:
    """Call `make` with an event loop running: where there is none, Gradio opens one for every lock, and closes none."""
    try:
        asyncio.get_running_loop()  # a notebook's
    except RuntimeError:

        async def made() -> T:
            return make()

        return asyncio.run(made())
    return make()


def _free(port: int | None) -> int:
    """Return a port that nobody listens on. Raises InputError."""
    for each in (port,) if port else range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as tried, suppress(OSError):
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("127.0.0.1", each))
            return each
    raise InputError(f"port {port or f'{FIRST_PORT} and the next hundred'} is taken; name another with --port")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Called(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> None:
        app(*args, **kwargs)


# `tiebreak.app` is this package, and `tiebreak.app(run)` what one writes in a notebook.
sys.modules[__name__].__class__ = _Called
