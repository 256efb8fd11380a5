"""The rendered pages in a browser that can reach nothing but them.

Screenshots of every page, light, dark and on a phone, are left in _build/screenshots.
"""

import build
import pytest
from browser import shoot

PAGES = [f"{page}.html" for page in build.pages()]
RAW_FORMULAS = """() => [...document.querySelectorAll('.math')]
    .filter(m => !m.querySelector('mjx-container')).length"""
every_page = pytest.mark.parametrize("page", PAGES)


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

    def read():
        """Mean and standard deviation of the product, once the figure has drawn the newest state."""
        tab.wait_for_function("live => live.dataset.settled && live.dataset.settled === live.dataset.drawn", arg=live.element_handle())
        return tuple(float(live.get_attribute(f"data-{name}")) for name in ("mu", "sd"))

    precision = 1 + 1 / 0.8**2 + 1 / 0.6**2 + 1 / 1.2**2
    expected = (1.2 / 0.8**2 + 0.4 / 0.6**2 + 2.0 / 1.2**2) / precision
    assert read() == pytest.approx((expected, precision**-0.5), abs=1e-9)
    box = live.locator("svg.live-curves").bounding_box()
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
    live.get_by_role("button", name="Reset").click()
    assert read() == pytest.approx((expected, precision**-0.5), abs=1e-9)
    shoot(tab, "experts", "live")
    assert not tab.trouble
