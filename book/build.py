"""Executes the chapters and renders the book; `make` calls it, and so do the tests.

    build.py html [--stored]    execute every chapter and render the pages into _build/html;
                                --stored shows the committed outputs instead of executing
    build.py publish [name...]  execute chapters in place: writes the .ipynb twins that are committed
    build.py sync               carry the text of every .md into its .ipynb without executing
    build.py smoke [name...]    train every chapter from scratch with profile=smoke, in a temporary folder
    build.py runs               train every published run again; what is done already is skipped

The text (.md) is the source of a chapter. Only papermill executes, always from the text.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jupytext
import nbformat
import papermill
import yaml
from nbformat import NotebookNode
from PIL import Image
from traitlets.config import Config

from medvae_lite.widgets import live

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
STATIC = Path("book", "_static")
PROBES = BUILD / "probes"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PARALLEL = 2
# The tree's own package comes first, whatever is installed; torch's threads would fight for the cores.
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def pages(root: Path = ROOT) -> list[str]:
    """The table of contents in reading order, as paths without suffix ("book/cardiac/01_data")."""
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    return [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]


def chapters(root: Path = ROOT) -> list[Path]:
    """The pages that are text notebooks, as .md paths relative to `root`."""
    found = [Path(page).with_suffix(".md") for page in pages(root)]
    return [path for path in found if "format_name: myst" in (root / path).read_text()[:400]]


def named(names: Sequence[str]) -> list[Path]:
    """The chapters called `names` (part of the path is enough), or all of them for none."""
    missing = [name for name in names if not any(name in str(path) for path in chapters())]
    if missing:
        known = ", ".join(path.stem for path in chapters())
        raise SystemExit(f"no chapter is called {missing[0]!r}; there are: {known}")
    return [path for path in chapters() if not names or any(name in str(path) for name in names)]


def read_text(path: Path) -> NotebookNode:
    """A chapter's text as a notebook without outputs. Cell ids follow from the source, so they are stable."""
    notebook = jupytext.read(path)
    # It speaks of the .md, not of the .ipynb.
    notebook.metadata.get("jupytext", {}).pop("text_representation", None)
    used: set[str] = set()
    for cell in notebook.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = next(i for i in (f"{digest}-{n}" for n in range(1000)) if i not in used)
        used.add(cell.id)
    return notebook


def code_hash(notebook: NotebookNode) -> str:
    """sha256 of the code cells: tells whether stored outputs belong to the code above them."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def lighter(png: str) -> str:
    """The same picture, base64 in and out, in the smallest PNG that holds every pixel of it."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "RGBA" and image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")
    if image.mode == "RGB":
        red, green, blue = image.split()
        if red.tobytes() == green.tobytes() == blue.tobytes():
            image = red
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drops, in place, what differs between executions (times, widget state, progress bars), and packs the pictures."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]  # papermill's, which no text asked for
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            if outputs and output.output_type == "stream" and output.get("name") == outputs[-1].get("name"):
                outputs[-1].text += output.text
                continue
            if "text/html" in output.get("data", {}):
                output.data.pop(WIDGET_VIEW, None)
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = lighter(output.data["image/png"])
            outputs.append(output)
        # A stream that returns to the start of its line is a progress bar; other messages a cell may ask to leave out.
        silent = "remove-stderr" in cell.metadata.get("tags", [])
        cell.outputs = [o for o in outputs if not (o.get("name") == "stderr" and (silent or "\r" in o.text))]
    return notebook


def execute(chapter: Path, folder: Path, parameters: dict | None = None, shown: dict[str, str] | None = None) -> tuple[NotebookNode, float]:
    """Executes one chapter's text with papermill.

    Args:
        chapter: the .md file.
        folder: working directory of the kernel.
        parameters: values for the cell tagged `parameters`.
        shown: environment variables that say where live figures leave what their page loads.

    Returns:
        The cleaned notebook with its outputs, and the seconds it took.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the notebook up to there is kept in _build/failed.
    """
    start = time.monotonic()
    os.environ.update(ENVIRONMENT | {live.STATIC: "", live.PROBES: ""} | (shown or {}))
    with tempfile.TemporaryDirectory() as scratch:
        given, done = Path(scratch, "given.ipynb"), Path(scratch, "done.ipynb")
        nbformat.write(read_text(chapter), given)
        # Sockets in a folder of their own: kernels started at the same moment may pick the same port.
        sockets = {} if os.name == "nt" else {"transport": "ipc", "ip": str(Path(scratch, "kernel"))}
        how = {"kernel_name": "python3", "progress_bar": False, "config": Config(KernelManager=sockets)}
        try:
            papermill.execute_notebook(given, done, parameters, cwd=folder, **how)
        except papermill.PapermillExecutionError:
            failed = BUILD / "failed" / f"{chapter.stem}.ipynb"
            failed.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(done, failed)
            where = failed.relative_to(ROOT)
            print(f"{chapter.stem} failed; its cells and outputs are in {where}", file=sys.stderr)
            raise
        notebook = nbformat.read(done, as_version=4)
    return clean(notebook), time.monotonic() - start


def publish(chapter: Path, root: Path = ROOT) -> float:
    """Executes `root / chapter` as its page and writes the .ipynb beside it; returns the seconds."""
    text = root / chapter
    shown = {live.STATIC: str(root / STATIC), live.PROBES: str(PROBES)}
    notebook, seconds = execute(text, text.parent, shown=shown)
    notebook.metadata["published"] = {"code": code_hash(notebook)}
    nbformat.write(notebook, text.with_suffix(".ipynb"))
    return seconds


def sync(chapter: Path, root: Path = ROOT) -> None:
    """Carries the text into the .ipynb; a cell whose source is unchanged keeps its outputs."""
    text, twin = root / chapter, (root / chapter).with_suffix(".ipynb")
    notebook = read_text(text)
    if twin.exists():
        stored = nbformat.read(twin, as_version=4)
        outputs = {c.id: (c.outputs, c.execution_count) for c in stored.cells if c.cell_type == "code"}
        kept = {"language_info", "published"} & set(stored.metadata)
        notebook.metadata.update({key: stored.metadata[key] for key in kept})
        for cell in notebook.cells:
            if cell.cell_type == "code" and cell.id in outputs:
                cell.outputs, cell.execution_count = outputs[cell.id]
    nbformat.write(notebook, twin)


def smoke(chapter: Path) -> float:
    """Runs one chapter from scratch with the smallest profile, away from the tree; returns the seconds."""
    with tempfile.TemporaryDirectory() as runs_root:
        return execute(ROOT / chapter, Path(runs_root), {"profile": "smoke", "runs_root": runs_root})[1]


def stage(target: Path, root: Path = ROOT) -> Path:
    """Copies what a build reads into `target`, so that executing and rendering leave the checkout as it was.

    The package goes along: the pages show parts of its source by `literalinclude`.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(root / name, target / name)
    caches = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("book", "medvae_lite", "data_prep"):
        shutil.copytree(root / name, target / name, ignore=caches)
    shown = target / STATIC / "live"
    shown.mkdir(exist_ok=True)
    (shown / "live.js").write_text(live.script())
    (shown / "live.css").write_text(live.style())
    return target


def html(stored: bool = False) -> Path:
    """Renders the book into _build/html, warnings being errors, and returns its first page."""
    source = stage(BUILD / "src")
    if stored:
        for path in chapters():
            sync(path, source)
    else:
        shutil.rmtree(PROBES, ignore_errors=True)
        report(chapters(), in_parallel(publish, chapters(), source))
    for path in chapters():
        (source / path).unlink()  # Sphinx warns about two sources for one page
    for stale in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(BUILD / stale, ignore_errors=True)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [jupyter_book, "build", source, "--path-output", ROOT, "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    (BUILD / "sphinx.log").write_text(log)
    if done.returncode or not (BUILD / "html").exists():
        lines = [line for line in log.splitlines() if re.search(r"WARNING|ERROR|Error", line)]
        lines = lines or log.splitlines()[-20:]
        raise SystemExit("\n".join([*lines, "The book was not built; see _build/sphinx.log."]))
    return BUILD / "html" / "index.html"


def in_parallel(task, paths: Sequence[Path], *args) -> list[float]:
    """`task(path, *args)` for every path, a few at a time, in order. The first chapter to fail ends it."""
    # Processes, since papermill changes the working directory of the one it runs in.
    with ProcessPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(task, path, *args) for path in paths]
        try:
            return [future.result() for future in futures]
        except papermill.PapermillExecutionError as failure:
            pool.shutdown(cancel_futures=True)
            raise SystemExit(str(failure)) from None


def report(paths: Sequence[Path], seconds: Sequence[float]) -> None:
    """Prints how long each chapter took."""
    for path, took in zip(paths, seconds, strict=True):
        print(f"{took:6.0f} s  {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line described at the top of this file."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("action", choices=["html", "publish", "sync", "smoke", "runs"])
    parser.add_argument("names", nargs="*", help="chapters, by name or part of one; all if none is given")
    parser.add_argument("--stored", action="store_true", help="html: show the committed outputs")
    args = parser.parse_args(argv)
    start = time.monotonic()
    if args.action == "html":
        page = html(args.stored)
        took = time.monotonic() - start
        print(f"Built in {took:.0f} s: open {page}, or `make serve` for the live figures.")
    elif args.action == "sync":
        for path in named(args.names):
            sync(path)
    elif args.action == "runs":
        makers = [sys.executable, ROOT / "book" / "make_runs.py"]
        if subprocess.run(makers, env=os.environ | ENVIRONMENT).returncode:
            raise SystemExit("Stopped before the end; `make runs` goes on from here.")
        print(f"Every published run is there; {time.monotonic() - start:.0f} s in all.")
    else:
        task = {"publish": publish, "smoke": smoke}[args.action]
        report(named(args.names), in_parallel(task, named(args.names)))


if __name__ == "__main__":
    main()
