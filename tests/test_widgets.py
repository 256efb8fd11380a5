"""The widgets' Python side; what they do in a page is tested in the rendered book."""

import json
import re

import pytest

from medvae_lite.widgets import Experts


def test_the_page_gets_its_state_and_no_link_to_anywhere():
    html = Experts({"a": (1.0, 0.5), "b": (-1.0, 2.0)}, prior=False)._repr_html_()
    state = json.loads(re.search(r"\), (\{.*\})\);\n", html).group(1))
    assert state["prior"] is False and state["experts"][1] == {"name": "b", "mu": -1.0, "sd": 2.0, "on": True}
    assert state["id"] in html and "<noscript>" in html
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}, "a name, not an address"


def test_two_on_one_page_do_not_share_an_id():
    first, second = (re.search(r'id="(\w+)"', Experts({"a": (0.0, 1.0)})._repr_html_()).group(1) for _ in range(2))
    assert first != second


@pytest.mark.parametrize("experts", [{}, {"a": (0.0, 0.0)}, {c: (0.0, 1.0) for c in "abcd"}])
def test_what_cannot_be_drawn_is_refused(experts):
    with pytest.raises(ValueError, match="one to three pairs of a mean and a positive standard deviation"):
        Experts(experts)
