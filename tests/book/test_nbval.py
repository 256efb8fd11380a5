"""Executing a chapter again, from the published runs, gives the outputs on its page (pictures aside)."""

import os
import subprocess
import sys
from pathlib import Path

import build
import pytest

from medvae_lite.widgets import live

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The book away from the checkout: a chapter that trains writes its run there."""
    return build.stage(tmp_path_factory.mktemp("nbval") / "src")


@pytest.mark.parametrize("chapter", build.chapters(), ids=str)
def test_same_outputs_as_published(chapter, copy):
    notebook = (copy / chapter).with_suffix(".ipynb")
    assert notebook.exists(), f"{notebook.name} is missing: run `make publish`"
    before = set((copy / "book" / "runs").glob("*"))
    # A session of its own, with none of this project's pytest options.
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", copy]
    command += ["-p", "no:cacheprovider", "-p", "nbval_plugin", "--nbval-current-env"]
    command += ["--nbval-sanitize-with", HERE / "nbval_sanitize.cfg", "--nbval", notebook]
    path = os.pathsep.join([str(build.ROOT), str(HERE)])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", live.PROBES: str(build.PROBES)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=notebook.parent)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    trained = set((copy / "book" / "runs").glob("*")) - before
    assert not trained, f"not published, so it was trained again: {sorted(run.name for run in trained)}"
