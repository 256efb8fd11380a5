"""A headless browser that can reach nothing but the book, and a server for it."""

import contextlib
import functools
import http.server
import os
import shutil
import threading

import build

SHOTS = build.BUILD / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# sphinx-thebe, which Jupyter Book always loads, defines its variables twice.
HARMLESS = {"Identifier 'THEBE_JS_URL' has already been declared"}
TYPESET = "() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log line a request."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args):
        """Says nothing."""


@contextlib.contextmanager
def serve(folder):
    """The address at which `folder` is served while the block runs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


def executable():
    """The machine's own Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def shoot(tab, page, kind):
    """Leaves a picture of the whole page for a person to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = page.removeprefix("book/").removesuffix(".html").replace("/", "-")
    tab.screenshot(path=SHOTS / f"{name}-{kind}.png", full_page=True)
