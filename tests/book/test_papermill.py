"""Every chapter runs as a program: trained from scratch in its smallest form, and stopped by a bad value."""

import build
import papermill
import pytest

CHAPTERS = build.chapters()
SECONDS = 180  # a chapter needs under 60 with a core to itself; here it may share


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_smoke_from_scratch(chapter):
    assert build.smoke(chapter) < SECONDS


@pytest.mark.parametrize("chapter", CHAPTERS[:1], ids=str)
def test_a_bad_parameter_stops_the_run_with_its_sentence(chapter, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=r"`profile`.*'huge'"):
        build.execute(build.ROOT / chapter, tmp_path, {"profile": "huge"})
