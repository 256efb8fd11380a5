"""Shared by the tests of the chapters and of the rendered pages."""

import build
import pytest

HTML = build.BUILD / "html"


@pytest.fixture(scope="session")
def html():
    """The rendered book."""
    if not (HTML / "index.html").exists():
        pytest.skip("no book in _build/html: run `make book` first")
    return HTML
