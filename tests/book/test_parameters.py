"""A value that cannot work is refused at once, by a sentence that names the parameter and the value."""

import json
import math
import os
import subprocess
import sys

import build
import jupytext
import pytest

CHECK = "check_parameters"
# name -> values no chapter can work with
IMPOSSIBLE = {
    "profile": ["huge", 3, ""],
    "seed": [-1, 0.5, "one"],
    "device": ["tpu", 0],
    "data_root": ["/nowhere/at/all", 3],
    "runs_root": [3],
    "retrain": ["maybe", 2],
}
# Reads [opening, {name: value}, ...] and answers the refusal of each, or null. It is a process of its own, so
# that the package is as a reader has it, without the shape checks of this test session.
RUNNER = """
import json, sys
(parameters, rest), *cases = json.load(sys.stdin)
answers = []
for changed in cases:
    scope = {"__name__": "__main__"}
    exec(parameters, scope)
    scope.update(changed)
    try:
        exec(rest, scope)
    except Exception as refusal:
        answers.append([type(refusal).__name__, str(refusal)])
    else:
        answers.append(None)
json.dump(answers, sys.stdout)
"""


def opening(chapter):
    """The code of the parameters cell, and the code from there to the check, as two strings."""
    cells = [cell for cell in jupytext.read(build.ROOT / chapter).cells if cell.cell_type == "code"]
    last = next((i for i, cell in enumerate(cells) if CHECK in cell.source), None)
    assert last is not None, f"no cell calls `{CHECK}`"
    return cells[0].source, "\n".join(cell.source for cell in cells[1 : last + 1])


def answers(chapter, cases):
    """For every case of changed parameters the refusal by the chapter: [type, sentence], or None."""
    env = {**os.environ, "PYTHONPATH": str(build.ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    given = json.dumps([opening(chapter), *cases])
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=given, capture_output=True, text=True, env=env, check=False,
        cwd=(build.ROOT / chapter).parent, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def impossible(name, value):
    """Values of the wrong type, or out of every range."""
    if name in IMPOSSIBLE:
        return IMPOSSIBLE[name]
    if isinstance(value, bool):
        return ["maybe"]
    if isinstance(value, int):
        return ["many", 1.5, -1]
    if isinstance(value, float):
        return ["much", math.nan, math.inf]
    return [3]


def is_sentence(refusal, name, bad):
    """One line that names the parameter and the value, from an exception that says it is about a value."""
    kind, text = refusal or ("", "")
    right_kind = kind in ("ValueError", "TypeError", "FileNotFoundError")
    return right_kind and f"`{name}`" in text and str(bad) in text and "\n" not in text and len(text) < 300


@pytest.mark.parametrize("chapter", build.chapters(), ids=str)
def test_refused_with_a_sentence(chapter):
    given: dict = {}
    exec(opening(chapter)[0], given)
    defaults = {name: value for name, value in given.items() if name != "__builtins__"}
    cases = [(name, bad) for name, value in defaults.items() for bad in impossible(name, value)]
    refusals = answers(chapter, [{name: bad} for name, bad in cases])
    wrong = [
        f"{name}={bad!r}: {refusal or 'accepted'}"
        for (name, bad), refusal in zip(cases, refusals, strict=True)
        if not is_sentence(refusal, name, bad)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("chapter", build.chapters(), ids=str)
def test_every_profile_is_accepted(chapter):
    profiles = ["smoke", "laptop", "paper"]
    refusals = answers(chapter, [{"profile": profile} for profile in profiles])
    assert refusals == [None] * 3, dict(zip(profiles, refusals, strict=True))
