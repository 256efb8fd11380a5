"""The committed .ipynb is the text, executed once from top to bottom, less what changes from day to day."""

import re

import build
import jupytext
import nbformat
import pytest

CHAPTERS = build.chapters()
MEND = "run `make publish`"
LARGEST = 600_000  # bytes; pictures and weights live in files, not in the notebook

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=str)


@pytest.fixture
def pair(chapter):
    """The text and its committed twin, both as notebooks."""
    path = (build.ROOT / chapter).with_suffix(".ipynb")
    assert path.exists(), f"{path.name} is missing: {MEND}"
    return build.read_text(build.ROOT / chapter), nbformat.read(path, as_version=4)


def test_there_are_chapters():
    assert CHAPTERS


def test_every_page_of_the_contents_exists():
    missing = [page for page in build.pages() if not (build.ROOT / page).with_suffix(".md").exists()]
    assert not missing


def test_every_text_is_in_the_contents():
    texts = {path.relative_to(build.ROOT).with_suffix("") for path in (build.ROOT / "book").rglob("*.md")}
    written = {text.as_posix() for text in texts if text.parts[1] not in ("runs", "_static")}
    assert written == set(build.pages())


@every_chapter
def test_text_and_notebook_hold_the_same_cells(pair):
    cells = [[(c.cell_type, c.source, c.metadata.get("tags", [])) for c in side.cells] for side in pair]
    assert cells[0] == cells[1], MEND


@every_chapter
def test_outputs_belong_to_the_code_above_them(pair):
    text, notebook = pair
    assert notebook.metadata.get("published", {}).get("code") == build.code_hash(text), (
        f"the code changed after it was executed: {MEND}"
    )


@every_chapter
def test_executed_once_from_top_to_bottom(pair):
    code = [cell for cell in pair[1].cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), MEND


@every_chapter
def test_outputs_are_fit_to_print(pair):
    for cell in pair[1].cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"a cell failed:\n{cell.source}"
            assert output.get("name") != "stderr", f"a warning is on the page: {output.text[:300]}"
            kinds = set(output.get("data", {}))
            assert build.WIDGET_VIEW not in kinds, f"a widget shows nothing without a kernel:\n{cell.source}"


@every_chapter
def test_nothing_of_one_machine_or_day(chapter, pair):
    text = (build.ROOT / chapter).with_suffix(".ipynb").read_text()
    assert len(text) < LARGEST, f"{len(text)} bytes"
    assert not {"papermill", "widgets"} & set(pair[1].metadata)
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in pair[1].cells)
    assert str(build.ROOT) not in text
    assert not re.search(r"[\"' (](/home|/Users|/root|/tmp)/\w", text)


@every_chapter
def test_parameters_come_first_and_are_scalars(chapter):
    code = [cell for cell in jupytext.read(build.ROOT / chapter).cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1], "the first code cell, and no other, is tagged `parameters`"
    given: dict = {}
    exec(tagged[0].source, given)
    given.pop("__builtins__")
    assert all(isinstance(value, str | int | float | bool) for value in given.values())
    expected = {"profile": "laptop", "data_root": "", "retrain": False}
    assert {name: given.get(name) for name in expected} == expected, "the page is made with these values"
    assert {"seed", "device", "runs_root"} <= set(given)
