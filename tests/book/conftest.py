"""Shared by the tests of the chapters and of the rendered pages."""

import build
import pytest
from browser import FLAGS, HARMLESS, TYPESET, executable, serve
from playwright.sync_api import sync_playwright

HTML = build.BUILD / "html"


@pytest.fixture(scope="session")
def html():
    """The rendered book."""
    if not (HTML / "index.html").exists():
        pytest.skip("no book in _build/html: run `make book` first")
    return HTML


@pytest.fixture(scope="module")
def address(html):
    """Where the book is served, for as long as the tests of this file run."""
    with serve(html) as where:
        yield where


@pytest.fixture(scope="module")
def chromium():
    """A headless browser, the machine's own."""
    path = executable()
    if path is None:
        pytest.fail("no Chromium on this machine: run `make browser`, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """`visit(page, ...)` opens a page; what it complains about, or reaches for outside, is in `.trouble`."""
    contexts = []

    def open_page(page, *, width=1280, height=900, scheme="light", base=address, before="", scripts=True):
        how = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "java_script_enabled": scripts}
        context = chromium.new_context(**how)
        contexts.append(context)
        if before:
            context.add_init_script(before)
        tab = context.new_page()
        tab.trouble, tab.asked = [], []

        def gate(route):
            if route.request.url.startswith((base, "data:", "blob:")):
                return route.continue_()
            tab.trouble.append(f"outside request: {route.request.url}")
            return route.abort()

        context.route("**/*", gate)
        def note(bad, text):
            if bad:
                tab.trouble.append(text)

        tab.on("console", lambda m: note(m.type in ("error", "warning"), f"console: {m.text}"))
        tab.on("pageerror", lambda e: note(e.message not in HARMLESS, f"page error: {e.message}"))
        tab.on("request", lambda r: tab.asked.append(r.url))
        tab.on("response", lambda r: note(r.status >= 400, f"{r.status}: {r.url}"))
        tab.set_default_timeout(90_000)
        tab.goto(f"{base}/{page}", wait_until="load")
        if scripts:
            tab.wait_for_function(TYPESET)
        return tab

    yield open_page
    for context in contexts:
        context.close()
