"""Sweeps: what is refused before anything is written, what is run again, what is kept of a failure, and who reads it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from torch import nn

from medvae_lite import experiments, published, runs, sweep, sweep_study, sweep_worker
from medvae_lite.sweep_notebook import defaults
from medvae_lite.train import FitConfig

BOOK = Path(__file__).parents[1] / "book"
PARAMETERS = 'weight = 1.0  # nats\nseed = 0\nname = "a"\nflag = False\ndata_root = ""\nruns_root = "runs"\nfree = None\n'
# Writes a run record as the package does, in files: a kernel that imports no torch starts in a second.
BODY = """
import json, os
from pathlib import Path
if weight < 0:
    raise ValueError(f"`weight` must not be negative, got {weight}\\nand a second line")
record = Path(runs_root, f"{name}-seed{seed}-{weight:.0f}")
record.mkdir(parents=True, exist_ok=True)
(record / "epochs.csv").write_text("step\\n1\\n")
(record / "config.json").write_text(json.dumps({"seed": seed, "data": "d" * 8}))
(record / "manifest.json").write_text(json.dumps({"code": "c" * 8}))
(record / "metrics.json").write_text(json.dumps({"score": 10 * weight + seed, "weight": 7}))
with open(os.environ["MEDVAE_LEDGER"], "a") as ledger:
    ledger.write(f"{record.resolve()}\\n" * 2)
print("works in", os.getcwd())
"""


def write_notebook(path, *code, tags=("parameters",)):
    cells = [new_markdown_cell("# A study"), new_code_cell(PARAMETERS, metadata={"tags": list(tags)})]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, code)], metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    (tmp_path / "book").mkdir()
    return write_notebook(tmp_path / "book" / "study.ipynb", BODY)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


class Now:
    """An executor that is finished when it is asked; `answer` replaces the kernel."""

    def __init__(self, answer=None):
        self.jobs, self.answer = [], answer

    def submit(self, fn, /, *args):
        """A future that is done."""
        self.jobs.append(args[0])
        future = Future()
        try:
            future.set_result((self.answer or fn)(*args))
        except Exception as problem:
            future.set_exception(problem)
        return future

    @property
    def given(self):
        """The swept values of every job, in the order they came."""
        return [(job["parameters"].get("weight"), job["parameters"].get("seed")) for job in self.jobs]


def pretend(job):
    """What a worker hands back of a setting that went well."""
    return {
        "status": "done", "error": "", "records": [], "seconds": 1.0, "package_code": sweep_study.package_code(), "versions": {},
        "executed": job["notebook"],
    }  # fmt: skip


def run(notebook, grid, out, executor, **fixed):
    return sweep.run(notebook, grid, out, fixed=fixed, executor=executor, progress=False)


def files(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


REFUSED = [
    ({"wieght": [1.0]}, {}, "`wieght` is no parameter of study.ipynb; it has weight, seed, name, flag, data_root, runs_root, free"),
    ({"seed": [0]}, {"sede": 1}, "`sede` is no parameter of study.ipynb; it has weight, seed, .*"),
    ({}, {"seed": 0}, "there is nothing to sweep: give the values of at least one of weight, seed, .*"),
    ({"seed": []}, {}, "`seed` has no values: list at least one"),
    ({"seed": [0, 1]}, {"seed": 2}, "`seed` is both swept and set: give it once"),
    ({"seed": [0, 1, 0]}, {}, "`seed` lists 0 twice: list each value once"),
    ({"weight": [1, 1.0]}, {}, "`weight` lists 1.0 twice: list each value once"),
    ({"seed": [0.5]}, {}, "`seed` must be a whole number, like 0, got 0.5"),
    ({"seed": [True]}, {}, "`seed` must be a whole number, like 0, got True"),
    ({"seed": ["1"]}, {}, "`seed` must be a whole number, like 0, got '1'"),
    ({"weight": ["much"]}, {}, "`weight` must be a finite number, like 1.0, got 'much'"),
    ({"weight": [float("nan")]}, {}, "`weight` must be a finite number, like 1.0, got nan"),
    ({"weight": [float("inf")]}, {}, "`weight` must be a finite number, like 1.0, got inf"),
    ({"weight": [False]}, {}, "`weight` must be a finite number, like 1.0, got False"),
    ({"flag": [1]}, {}, "`flag` must be True or False, like False, got 1"),
    ({"name": [3]}, {}, "`name` must be text, like 'a', got 3"),
    ({"free": [[1]]}, {}, r"`free` must be text or a number, got \[1\]"),
    ({"name": "abc"}, {}, "`name` must list its values, got 'abc'"),
    ({"seed": 3}, {}, "`seed` must list its values, got 3"),
]


@pytest.mark.parametrize(("grid", "fixed", "sentence"), REFUSED, ids=[s[:40] for *_, s in REFUSED])
def test_refused_in_one_sentence_before_anything_is_written(notebook, out, grid, fixed, sentence):
    executor = Now(pretend)
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        run(notebook, grid, out, executor, **fixed)
    assert not out.exists() and not executor.jobs


def test_notebooks_and_folders_that_cannot_be(tmp_path, notebook, out):
    untagged = write_notebook(tmp_path / "untagged.ipynb", BODY, tags=())
    broken, taken = tmp_path / "broken.ipynb", tmp_path / "taken"
    broken.write_text("{")
    taken.write_text("mine")
    refused = {
        (tmp_path / "none.ipynb", out): "there is no notebook .*none.ipynb",
        (untagged, out): "untagged.ipynb has no parameters: tag the cell that sets them `parameters`",
        (broken, out): "broken.ipynb cannot be read as a notebook: ",
        (notebook, taken): "`out` must be a folder for the study, got the file .*taken",
        (notebook, taken / "deeper"): "`out` must be a folder that can be written, got .*deeper: Not a directory",
    }
    for (path, folder), sentence in refused.items():
        with pytest.raises(ValueError, match=sentence) as refusal:
            run(path, {"seed": [0]}, folder, Now(pretend))
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="^`workers` must be at least 1, got 0$"):
        sweep.run(notebook, {"seed": [0]}, out, workers=0)
    assert taken.read_text() == "mine" and not out.exists()


def test_values_become_what_the_notebook_takes(notebook, out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = Now(pretend)
    run(notebook, {"weight": np.logspace(0, 1, 2), "seed": np.arange(2)}, out, executor, data_root="mine", free="x")
    assert executor.given == [(1.0, 0), (1.0, 1), (10.0, 0), (10.0, 1)], "the cartesian product, the last name fastest"
    first = executor.jobs[0]["parameters"]
    assert [type(first[name]) for name in ("weight", "seed")] == [float, int]
    assert first["data_root"] == str(tmp_path / "mine"), "relative to where the user stands, not to the notebook"
    assert first["runs_root"] == str(out / "runs"), "never the notebook's own"
    run(notebook, {"weight": [1]}, tmp_path / "other", executor, runs_root="kept", data_root="")
    last = executor.jobs[-1]["parameters"]
    assert last["runs_root"] == str(tmp_path / "kept") and last["data_root"] == "" and type(last["weight"]) is float


def test_every_setting_has_its_own_files_and_a_study_may_be_moved():
    def slug(*swept, **parameters):
        return sweep.Setting(parameters, swept).slug

    odd = ["a/b", "a b", "a-b", "A-B", "../a", "ä", "x" * 300]
    slugs = [slug("name", name=name) for name in odd]
    assert len({s.lower() for s in slugs}) == len(odd) and all(len(s) < 100 for s in slugs)
    assert not any(set(s) & set('/\\: *?"<>|') for s in slugs)
    assert slug("seed", seed=0, profile="smoke") != slug("seed", seed=0, profile="laptop")
    assert slug("seed", seed=0, runs_root="/here") == slug("seed", seed=0, runs_root="/there")


def test_the_text_of_a_chapter_is_the_chapter():
    for name in ("cardiac/03_ar_sivae", "normative/subject_report"):
        text, twin = (BOOK / f"{name}{suffix}" for suffix in (".md", ".ipynb"))
        one, other = (sweep_study.Study.checked(path, {"seed": [0]}, {}, Path("nowhere")) for path in (text, twin))
        assert one.notebook_code == other.notebook_code
        assert defaults(one.notebook, text) == defaults(other.notebook, twin)
    assert defaults(jupytext.read(BOOK / "cardiac" / "03_ar_sivae.md"), text)["profile"] == "laptop"


def test_kernels_leave_notebooks_records_and_one_sentence_of_a_failure(notebook, out, tmp_path):
    table = run(notebook, {"weight": [2, -1], "seed": [3]}, out, Now(), name="b")
    assert list(table["status"]) == ["done", "failed"] and table["ran"].all()
    assert list(table["error"]) == ["", "ValueError: `weight` must not be negative, got -1.0"]
    assert files(out) == sorted([f"{slug}.{kind}" for slug in table.index for kind in ("ipynb", "json")] + ["results.csv", "runs"])
    good, bad = (nbformat.read(out / f"{slug}.ipynb", as_version=4) for slug in table.index)
    assert any(f"works in {notebook.parent}\n" in o.get("text", "") for c in good.cells for o in c.get("outputs", []))
    assert any(o.output_type == "error" for c in bad.cells for o in c.get("outputs", [])), "the failed one can be read"
    outcome = json.loads((out / f"{table.index[0]}.json").read_text())
    assert outcome["records"] == ["runs/b-seed3-2"], "once, and relative: a study may be moved"
    assert files(notebook.parent) == ["study.ipynb"], "nothing is written beside the notebook"
    assert published.LEDGER not in os.environ
    results = sweep.gather(out)
    expected = {
        "weight": 2.0, "seed": 3, "name": "b", "record": "b-seed3-2", "label": "b-seed3", "record_seed": 3,
        "data": "d" * 8, "code": "c" * 8, "score": 23.0, "metric_weight": 7,
    }  # fmt: skip
    assert len(results) == 1 and {name: results[name][0] for name in expected} == expected
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), results)
    moved = out.rename(tmp_path / "moved")
    pd.testing.assert_frame_equal(sweep.gather(moved), results)


def test_only_what_is_missing_failed_or_made_by_other_code_is_run_again(notebook, out, monkeypatch, caplog):
    caplog.set_level("INFO", logger="medvae_lite.sweep")
    monkeypatch.setattr(sweep_study, "package_code", lambda: "of today")
    grid = {"weight": [1, 2], "seed": [0, 1]}

    def fails(job):
        return pretend(job) | ({"status": "failed", "error": "E: no"} if job["parameters"]["weight"] == 2 else {})

    def again(answer=pretend):
        executor = Now(answer)
        table = run(notebook, grid, out, executor)
        return executor.given, caplog.messages[-1].partition("to run: ")[2], list(table["ran"])

    everything = [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)]
    assert again(fails)[:2] == (everything, "4 missing, 0 failed, 0 made by other code")
    assert again() == (everything[2:], "0 missing, 2 failed, 0 made by other code", [False, False, True, True])
    assert again() == ([], "0 missing, 0 failed, 0 made by other code", [False] * 4)
    next(out.glob("weight=1.0,seed=0*.json")).write_text("{")
    next(out.glob("weight=2.0,seed=1*.ipynb")).unlink()
    assert again()[:2] == ([everything[0], everything[3]], "2 missing, 0 failed, 0 made by other code")
    grid["seed"].append(2)
    assert again()[:2] == ([(1.0, 2), (2.0, 2)], "2 missing, 0 failed, 0 made by other code")
    book = nbformat.read(notebook, as_version=4)
    book.cells[0].source = "# Better words"
    nbformat.write(book, notebook)
    assert again()[1] == "0 missing, 0 failed, 0 made by other code", "prose is no code"
    write_notebook(notebook, BODY + "\n1 + 1")
    assert again()[1] == "0 missing, 0 failed, 6 made by other code"
    monkeypatch.setattr(sweep_study, "package_code", lambda: "other")
    assert again()[1] == "0 missing, 0 failed, 6 made by other code"
    assert again()[1] == "0 missing, 0 failed, 0 made by other code"


def test_a_setting_whose_record_is_gone_is_run_again(notebook, out):
    first, second = Now(), Now()
    run(notebook, {"seed": [0]}, out, first)
    record = out / "runs" / "a-seed0-1"
    (record / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match="a-seed0-1 is no finished run record"):
        sweep.gather(out)
    run(notebook, {"seed": [0]}, out, second)
    assert second.given == first.given and (record / "metrics.json").is_file()


def test_a_worker_that_dies_takes_no_other_setting_with_it(notebook, out):
    def dies(job):
        if job["parameters"]["seed"] == 0:
            raise RuntimeError("killed\nby the system")
        return pretend(job)

    run(notebook, {"seed": [0]}, out, Now(pretend))
    write_notebook(notebook, BODY + "\n1 + 1")
    table = run(notebook, {"seed": [0, 1]}, out, Now(dies))
    assert list(table["status"]) == ["failed", "done"] and table["error"].iloc[0] == "RuntimeError: killed"
    assert len(sweep.gather(out)) == 1
    assert len(list(out.glob("*.ipynb"))) == 1, "the notebook of a setting that did better once is gone"


def test_a_package_that_is_being_edited_fails_its_setting_only(notebook, out, monkeypatch):
    def half_saved():
        raise SyntaxError("'(' was never closed")

    monkeypatch.setattr(sweep_worker, "package_code", half_saved)
    table = run(notebook, {"seed": [0]}, out, Now())
    assert list(table["error"]) == ["SyntaxError: '(' was never closed"]


def test_a_study_of_another_notebook_is_left_alone(notebook, out):
    run(notebook, {"seed": [0]}, out, Now(pretend))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = write_notebook(notebook.with_name("other.ipynb"), BODY)
    with pytest.raises(ValueError, match="out holds a sweep of study.ipynb: choose another folder for other.ipynb$"):
        run(other, {"seed": [0]}, out, Now(pretend))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_json_that_is_no_setting_is_left_alone(notebook, out):
    out.mkdir()
    (out / "mine.json").write_text('{"status": "done", "swept": [], "package_code": ""}')
    assert list(run(notebook, {"seed": [0]}, out, Now(pretend))["status"]) == ["done"]
    assert len(sweep.gather(out)) == 1


def test_two_sweeps_on_one_folder_and_a_lock_left_by_the_dead(notebook, out):
    refused = []

    def meanwhile(job):
        with pytest.raises(ValueError, match=f"^process {os.getpid()} on {socket.gethostname()} is sweeping in .*out: wait") as no:
            run(notebook, {"seed": [1]}, out, Now(pretend))
        refused.append(str(no.value))
        return pretend(job)

    table = run(notebook, {"seed": [0]}, out, Now(meanwhile))
    assert list(table["status"]) == ["done"] and len(refused) == 1 and "\n" not in refused[0]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (out / ".sweep.lock").write_text(f"{dead.pid}\n{socket.gethostname()}\n")
    assert list(run(notebook, {"seed": [1]}, out, Now(pretend))["status"]) == ["done"]
    assert not (out / ".sweep.lock").exists()
    (out / ".sweep.lock").write_text("1\nanother-host\n")
    with pytest.raises(ValueError, match="^process 1 on another-host is sweeping in"):
        run(notebook, {"seed": [2]}, out, Now(pretend))


def test_rows_are_in_order_and_tools_are_left_out(notebook, out):
    def with_tool(job):
        records = []
        if job["parameters"]["weight"] == 9:  # a feature network: nothing was measured on it
            for name, metrics in {"tool-0": {}, "model-1": {"score": 1.0}}.items():
                (out / "runs" / name).mkdir(parents=True)
                records.append(str(out / "runs" / name))
                for file, text in {"config": "{}", "manifest": "{}", "metrics": json.dumps(metrics)}.items():
                    (out / "runs" / name / f"{file}.json").write_text(text)
                (out / "runs" / name / "epochs.csv").write_text("step\n1\n")
        return pretend(job) | {"records": records}

    run(notebook, {"weight": [100, 9, 50]}, out, Now(with_tool))
    table = sweep.gather(out)
    assert list(table["weight"]) == [9, 50, 100], "as numbers, not as text"
    assert table["record"].iloc[0] == "model-1" and table["record"].isna().tolist() == [False, True, True]
    with pytest.raises(ValueError, match="holds no finished setting"):
        sweep.gather(out / "runs")


def command(notebook, out, *options):
    return [sys.executable, "-m", "medvae_lite.sweep", notebook, "--out", out, *options]


def test_the_command_line(notebook, out):
    grid = ["--grid", "weight=1,-1", "--grid", "seed=4", "--set", "name=00", "--workers", "1"]
    done = subprocess.run(command(notebook, out, *grid), capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert said[0] == "2 settings: 0 done before; to run: 2 missing, 0 failed, 0 made by other code"
    assert said[1] == f"1 of 2 settings are done; their results are in {out / 'results.csv'}"
    assert len(said) == 3 and said[2].endswith("ipynb: ValueError: `weight` must not be negative, got -1.0")
    assert "failed=1" in done.stderr
    results = pd.read_csv(out / "results.csv", dtype={"name": str})
    assert list(results["name"]) == ["00"], "text stays as it was typed"
    assert list(results["score"]) == [14.0]


@pytest.mark.parametrize(("options", "sentence"), [
    (["--grid", "seed=0", "--grid", "seed=1"], "`seed` is given twice: give it once, as --grid seed=..."),
    (["--grid", "seed"], "`--grid` must be NAME=VALUE, got 'seed'"),
    (["--grid", "seed="], "`seed` has no values: list at least one"),
    (["--grid", "weight=much"], "`weight` must be a finite number, like 1.0, got 'much'"),
    (["--grid", "flag=yes"], "`flag` must be True or False, like False, got 'yes'"),
    (["--grid", "seed=0", "--set", "nmae=b"], "`nmae` is no parameter of study.ipynb"),
    (["--grid", "seed=0", "--scheduler", "nonsense"], "no Dask scheduler answers at 'nonsense'"),
    ([], "there is nothing to sweep"),
])  # fmt: skip
def test_the_command_line_refuses_in_one_sentence(notebook, out, options, sentence):
    with pytest.raises(SystemExit) as refusal:
        sweep.main([str(part) for part in command(notebook, out, *options)[3:]])
    assert str(refusal.value).startswith(sentence) and "\n" not in str(refusal.value)
    assert not out.exists()


def test_a_process_that_is_killed_takes_no_other_setting_with_it(notebook, out):
    kill, wait = "os.kill(os.getppid(), signal.SIGKILL)", "time.sleep(2)"
    write_notebook(notebook, BODY, f"import signal, time\nif seed == 0: {kill}\nif seed == 1: {wait}")
    done = subprocess.run(
        command(notebook, out, "--grid", "seed=0,1,2", "--workers", "2"), capture_output=True, text=True, timeout=300
    )
    said = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert said[1].startswith("2 of 3 settings are done") and said[2].startswith("failed: seed=0-") and len(said) == 3
    assert ".json: BrokenProcessPool: A process in the process pool was terminated abruptly" in said[2], "there is no notebook"


def test_ctrl_c_leaves_what_is_finished_and_no_kernel(notebook, out):
    write_notebook(notebook, BODY, "import time\nPath(data_root, str(os.getpid())).touch()\nif seed: time.sleep(600)")
    (started := out.parent / "started").mkdir()
    options = ["--grid", "seed=0,1,2", "--set", f"data_root={started}", "--workers", "1"]
    # A shell that runs the tests in the background makes what they start deaf to Ctrl-C.
    hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": hears}
    doing = subprocess.Popen(command(notebook, out, *options), **how)
    deadline = time.monotonic() + 60
    while len(list(started.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    doing.send_signal(signal.SIGINT)
    _, said = doing.communicate(timeout=30)
    assert doing.returncode == 1 and said.splitlines()[-1].startswith("Stopped. What is finished is in")
    table = pd.read_csv(out / "results.csv")
    assert list(table["seed"]) == [0] and len(list(out.glob("*.json"))) == 1, "the interrupted one is not called failed"
    kernels, deadline = [int(path.name) for path in started.iterdir()], time.monotonic() + 20
    while any(map(alive, kernels)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(kernels) == 2 and not any(map(alive, kernels))


def alive(pid):
    """Whether a process runs; one that has ended and waits to be counted does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_dask_cluster_does_the_same(notebook, out):
    distributed = pytest.importorskip("distributed", reason="the `sweep` extra is not installed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        options = ["--grid", "weight=1,-1", "--grid", "seed=0", "--scheduler", address]
        assert sweep.main([str(part) for part in command(notebook, out, *options)[3:]]) == 1
        with distributed.Client(cluster, set_as_default=False) as client:  # the client itself, as from Python
            table = run(notebook, {"weight": [1, 5], "seed": [0]}, out, client)
            assert len(client.scheduler_info()["workers"]) == 2
    assert list(table["ran"]) == [False, True] and (table["status"] == "done").all()
    assert list(sweep.gather(out)["score"]) == [10.0, 50.0]


class Table:
    """A dataset that nobody looks into."""

    identity = "d" * 64

    def split(self, name):
        """None of its splits."""
        raise NotImplementedError


class Model(nn.Linear):
    config = {"width": 1}


def train(root, monkeypatch, calls, slowly=0.0, **options):
    """`train_or_load` with a training that only counts."""

    def fit(model, *args, folder, **kwargs):
        calls.append(time.sleep(slowly))
        folder.mkdir(parents=True)
        return pd.DataFrame({"step": [1]}), {"seed": 0, "code": runs.code_hash(*published.TRAINING_CODE)}

    monkeypatch.setattr(published, "fit", fit)
    monkeypatch.setattr(Table, "split", lambda self, name: None)
    load = getattr(published.train_or_load, "__wrapped__", published.train_or_load)
    return load("m", lambda: Model(1, 1), Table(), FitConfig(steps=1), seed=0, device="cpu", runs_root=root, **options)


def test_the_ledger_has_every_record_that_was_used(tmp_path, monkeypatch):
    calls, ledger = [], tmp_path / "ledger"
    folder = train(tmp_path / "runs", monkeypatch, calls)[1].folder
    assert not ledger.exists(), "nobody asked for one"
    monkeypatch.setenv(published.LEDGER, str(ledger))
    monkeypatch.chdir(tmp_path)
    train("runs", monkeypatch, calls)  # found
    train("runs", monkeypatch, calls, light=True)
    train("other", monkeypatch, calls)  # trained
    assert len(calls) == 2
    assert ledger.read_text().splitlines() == [str(folder), str(folder), str(tmp_path / "other" / folder.name)]


def test_two_that_want_one_run_train_it_once(tmp_path, monkeypatch):
    calls, found = [], []
    work = [threading.Thread(target=lambda: found.append(train(tmp_path, monkeypatch, calls, 0.5, light=True)[1])) for _ in range(3)]
    for thread in work:
        thread.start()
        time.sleep(0.05)
    for thread in work:
        thread.join(timeout=20)
    assert len(calls) == 1 and [record.folder for record in found] == [found[0].folder] * 3
    assert [path.name for path in tmp_path.iterdir()] == [found[0].folder.name], "no lock is left"


def test_the_published_study_is_that_of_the_published_records():
    table = pd.read_csv(BOOK / "runs" / "sweep-gamma_reg.csv")
    settings = [(gamma, seed) for gamma in experiments.GAMMAS for seed in range(experiments.SEEDS["grid"])]
    assert list(zip(table["gamma_reg"], table["seed"])) == settings
    for _, row in table.iterrows():
        record = runs.load_record(BOOK / "runs" / row["record"])
        assert (record.config["model"]["gamma_reg"], record.config["seed"]) == (row["gamma_reg"], row["seed"])
        assert {name: row[name] for name in record.metrics} == record.metrics
        assert (row["data"], row["code"]) == (record.config["data"], record.manifest["code"])
