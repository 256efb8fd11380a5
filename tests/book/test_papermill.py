"""Every chapter runs as a program: trained from scratch in its smallest form, and stopped by a bad value."""

from pathlib import Path

import build
import nbformat
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


def test_publishing_executes_in_place_and_leaves_what_the_page_loads(tmp_path, monkeypatch):
    chapter = Path("book", "normative", "04_missing_modalities.md")
    monkeypatch.setattr(build, "PROBES", tmp_path / "probes")
    root = build.stage(tmp_path / "src")
    static, twin = root / build.STATIC / "live", (root / chapter).with_suffix(".ipynb")
    for path in [twin, *static.glob("person*.onnx")]:
        path.unlink()
    build.publish(chapter, root)
    made, committed = (nbformat.read(path, as_version=4) for path in (twin, (build.ROOT / chapter).with_suffix(".ipynb")))
    assert [cell.source for cell in made.cells] == [cell.source for cell in committed.cells]
    assert made.metadata["published"] == committed.metadata["published"]
    figures = {path.name for path in static.glob("person*.onnx")}
    assert figures == {path.name for path in (build.ROOT / build.STATIC / "live").glob("person*.onnx")} and len(figures) == 2
    assert {path.stem for path in (tmp_path / "probes").iterdir()} == figures
