"""The rendered pages in a browser that can reach nothing but them.

Screenshots of every page, light, dark and on a phone, are left in _build/screenshots.
"""

import functools
import http.server
import os
import shutil
import threading

import build
import pytest
from playwright.sync_api import sync_playwright

PAGES = [f"{page}.html" for page in build.pages()]
SHOTS = build.BUILD / "screenshots"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# sphinx-thebe, which Jupyter Book always loads, defines its variables twice.
HARMLESS = {"Identifier 'THEBE_JS_URL' has already been declared"}
TYPESET = "() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"
RAW_FORMULAS = """() => [...document.querySelectorAll('.math')]
    .filter(m => !m.querySelector('mjx-container')).length"""
every_page = pytest.mark.parametrize("page", PAGES)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log line a request."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture(scope="module")
def address(html):
    """Where the book is served, for as long as the tests of this file run."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """A headless browser, the machine's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
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

    def open_page(page, *, width=1280, height=900, scheme="light", base=address):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.trouble = []

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
        tab.on("response", lambda r: note(r.status >= 400, f"{r.status}: {r.url}"))
        tab.set_default_timeout(90_000)
        tab.goto(f"{base}/{page}", wait_until="load")
        tab.wait_for_function(TYPESET)
        return tab

    yield open_page
    for context in contexts:
        context.close()


def shoot(tab, page, kind):
    """Leaves a picture of the whole page for a person to look at."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    name = page.removeprefix("book/").removesuffix(".html").replace("/", "-")
    tab.screenshot(path=SHOTS / f"{name}-{kind}.png", full_page=True)


def scroll_through(tab):
    """Passes the whole page before the window, so that whatever loads when in view does."""
    tab.evaluate(
        """async () => { for (let y = 0; y < document.body.scrollHeight; y += 600) {
            window.scrollTo(0, y); await new Promise(r => setTimeout(r, 50)); } window.scrollTo(0, 0); }"""
    )
    tab.wait_for_function("() => [...document.images].every(image => image.complete)")


@every_page
def test_loads_without_complaint_and_without_a_network(page, visit):
    tab = visit(page)
    scroll_through(tab)
    shoot(tab, page, "light")
    assert not tab.trouble
    broken = "() => [...document.images].filter(i => i.src && !i.naturalWidth).map(i => i.src)"
    assert tab.evaluate(broken) == []


@every_page
def test_mathematics_is_typeset(page, visit):
    tab = visit(page)
    assert tab.evaluate(RAW_FORMULAS) == 0
    assert tab.locator("mjx-merror").count() == 0
    # Without its fonts a formula is drawn in whatever the machine has.
    fonts = "() => !document.querySelector('mjx-container') || [...document.fonts].some(" \
            "f => f.family.startsWith('MJX') && f.status === 'loaded')"  # fmt: skip
    assert tab.evaluate(fonts)


@every_page
def test_dark_theme_leaves_grey_values_alone(page, visit):
    tab = visit(page, scheme="dark")
    tab.evaluate("() => { const d = document.documentElement.dataset; d.mode = d.theme = 'dark'; }")
    shoot(tab, page, "dark")
    filters = "() => [...document.querySelectorAll('.bd-article :is(img, canvas, svg)')].map(e => {" \
              "let f = []; for (; e; e = e.parentElement) f.push(getComputedStyle(e).filter);" \
              "return f.filter(x => x !== 'none').join(); }).filter(Boolean)"  # fmt: skip
    assert tab.evaluate(filters) == []


@every_page
def test_phone_does_not_scroll_sideways(page, visit):
    tab = visit(page, width=390, height=844)
    shoot(tab, page, "phone")
    wide = """() => [...document.querySelectorAll('.bd-article *')]
        .filter(e => e.getBoundingClientRect().right > 391 && !e.closest('mjx-assistive-mml'))
        .map(e => e.tagName + '.' + e.className).slice(0, 5)"""
    width = tab.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 390, f"the page is {width} px wide; first to stick out: {tab.evaluate(wide)}"


@every_page
def test_opens_from_disk_without_a_server(page, visit, html):
    tab = visit(page, base=html.as_uri())
    assert not tab.trouble
    assert tab.evaluate(RAW_FORMULAS) == 0


def test_search_finds_a_chapter(visit):
    tab = visit("search.html?q=variational")
    tab.wait_for_selector("#search-results li a")
    assert not tab.trouble


def test_experts_move_under_the_mouse_and_the_keyboard(visit):
    tab = visit("book/normative/02_product_of_experts.html")
    live = tab.locator("div.live").first
    live.scroll_into_view_if_needed()
    read = lambda: tuple(float(live.get_attribute(f"data-{name}")) for name in ("mu", "sd"))
    precision = 1 + 1 / 0.8**2 + 1 / 0.6**2 + 1 / 1.2**2
    expected = (1.2 / 0.8**2 + 0.4 / 0.6**2 + 2.0 / 1.2**2) / precision
    assert read() == pytest.approx((expected, precision**-0.5), abs=1e-9)
    box = live.locator("svg").bounding_box()
    at = lambda z: box["x"] + (10 + (z + 4) / 8 * 620) / 640 * box["width"]
    # The widest expert, taken by its right shoulder where no other curve lies, and carried to the left.
    height = box["y"] + (225 - 130 * 0.1523) / 260 * box["height"]
    tab.mouse.move(at(3.5), height)
    tab.mouse.down()
    tab.mouse.move(at(-2.0), height, steps=5)
    tab.mouse.up()
    assert read()[0] < expected - 0.3 and read()[1] == pytest.approx(precision**-0.5, abs=1e-9)
    live.locator("input[aria-label='standard deviation of cortical']").focus()
    before = read()[1]
    tab.keyboard.press("ArrowLeft")
    assert read()[1] < before, "a surer expert makes the product surer"
    for box_ in live.locator("input[type=checkbox]").all()[:3]:
        box_.uncheck()
    assert read() == (0.0, 1.0), "nobody but the prior"
    live.locator("button").click()
    assert read() == pytest.approx((expected, precision**-0.5), abs=1e-9)
    shoot(tab, "experts", "live")
    assert not tab.trouble
