"""The rendered pages as files: complete, self-contained, without a dead link."""

import re
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import build
import pytest

PAGES = [f"{page}.html" for page in build.pages()]
every_page = pytest.mark.parametrize("page", PAGES)


class Page(HTMLParser):
    """What one page defines (`anchors`), points to (`links`), loads (`loads`) and shows (`images`)."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.images = set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        """Collects the attributes that matter."""
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "link" and attrs.get("rel") in ("stylesheet", "icon", "preload", "modulepreload"):
            self.loads.append(attrs.get("href", ""))
        if tag in ("script", "img", "iframe", "source", "video") and attrs.get("src"):
            self.loads.append(attrs["src"])
        if tag == "img":
            self.images.append((attrs.get("src", ""), attrs.get("alt")))


@pytest.fixture(scope="module")
def site(html):
    """Path -> parsed page, for every page of the book, indices and source listings included."""
    return {path: Page(path) for path in html.rglob("*.html") if path.relative_to(html).parts[0] != "_static"}


@every_page
def test_page_exists(page, html):
    assert (html / page).exists()


def test_no_warning(html):
    assert "WARNING" not in (html.parent / "sphinx.log").read_text()


def test_every_link_leads_somewhere(site):
    dead = []
    for path, parsed in site.items():
        for link in parsed.links + parsed.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            if not target.exists():
                dead.append(f"{path.name}: {link}")
            elif fragment and target in site and fragment not in site[target].anchors:
                dead.append(f"{path.name}: {link} (no such anchor)")
    assert not dead, "\n".join(sorted(set(dead)))


def test_nothing_is_loaded_from_elsewhere(site, html):
    loads = {load for parsed in site.values() for load in parsed.loads}
    assert not {load for load in loads if urlsplit(load).netloc}
    for sheet in html.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name


@every_page
def test_every_picture_has_words(page, html, site):
    for source, alt in site[html / page].images:
        if "logo" not in source:
            assert alt and not alt.endswith((".png", ".svg")), f"{source} has no alt text (got {alt!r})"


@every_page
def test_no_path_of_one_machine(page, html):
    assert str(build.ROOT) not in (html / page).read_text()


def test_every_module_is_on_a_reference_page():
    listed = "".join(page.read_text() for page in (build.ROOT / "book" / "reference").glob("*.md"))
    names = [
        ".".join(path.relative_to(build.ROOT).with_suffix("").parts)
        for package in ("medvae_lite", "data_prep")
        for path in (build.ROOT / package).glob("*.py")
        if not path.name.startswith("_")
    ]
    assert [name for name in names if f".. automodule:: {name}\n" not in listed] == []
