"""All cores: the same results in the same order, from scripts and notebooks alike, and memory that does not grow."""

import multiprocessing
import operator
import os
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import pytest

from data_prep.large import in_order, let_go, processes

ROOT = Path(__file__).parents[1]


def test_results_come_in_order_from_other_processes():
    assert list(in_order(partial(pow, 2), range(50), 2)) == [2**i for i in range(50)]
    others = {pid for pid, _ in in_order(_who, range(8), 2)}
    assert os.getpid() not in others and len(others) <= 2
    assert {pid for pid, _ in in_order(_who, range(3), 1)} == {os.getpid()}


def _who(item):
    return os.getpid(), item


def test_a_failure_is_the_callers_and_the_rest_is_dropped():
    with pytest.raises(ZeroDivisionError):
        list(in_order(partial(operator.truediv, 1), [1, 0, 2, 4], 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_it_can_be_closed_early(workers):
    with closing(in_order(partial(operator.add, 1), range(100), workers)) as results:
        assert next(results) == 1
    assert list(results) == []


def test_nobody_runs_ahead_of_who_takes_the_results():
    taken = []

    class Items(list):
        def __iter__(self):
            for item in range(100):
                taken.append(item)
                yield item

    with closing(in_order(partial(operator.add, 1), Items(), 2)) as results:
        next(results)
        assert len(taken) <= 4


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 16)
    assert [processes(None, tasks, 8) for tasks in (0, 1, 7, 8, 12, 100)] == [1, 1, 1, 8, 12, 16]
    assert [processes(3, tasks, 8) for tasks in (0, 2, 100)] == [1, 2, 3]
    for workers in (0, -1):
        with pytest.raises(ValueError, match=f"^`workers` must be at least 1, got {workers}.$"):
            processes(workers, 100, 8)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert processes(None, 100, 8) == processes(4, 100, 8) == 1


SCRIPT = """
print("from the top")
from data_prep import brain_phantom
from data_prep.phantoms import phantom
print(phantom("brain", subjects=24, size=32, slices=2, workers=2).name)
"""


def test_a_script_without_a_guard_is_run_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"MEDVAE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "from the top" and done.stdout.count("from the top") == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [done.stdout.split("\n")[1]]


def test_a_notebook_may_use_processes(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    cell = f"import os\nos.environ['MEDVAE_CACHE'] = {str(tmp_path)!r}\n" + SCRIPT
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    said = "".join(out.get("text", "") for out in notebook.cells[0].outputs if out.get("name") == "stdout")
    assert said.count("from the top") == 1 and said.split()[-1] == next(tmp_path.iterdir()).name


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell which pages are resident")
def test_what_was_let_go_is_in_the_file(tmp_path):
    path = tmp_path / "array.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (2**20,))
    array[:] = np.arange(2**20)
    resident = lambda: int(Path("/proc/self/smaps").read_text().split(str(path))[1].split("Rss:")[1].split()[0])
    assert resident() > 4000
    let_go(array, None, np.zeros(3))
    assert resident() == 0
    assert (array == np.arange(2**20)).all()
    array.flush()
    assert (np.load(path) == np.arange(2**20)).all()
