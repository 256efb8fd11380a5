"""The notebook that is swept: its cells, its parameters and their defaults, and which values they take."""

from __future__ import annotations

import ast
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import papermill
from nbformat import NotebookNode

from medvae_lite.sweep_worker import first_line

__all__ = ["checked_values", "defaults", "literal", "read_notebook"]

_KINDS = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}
_FOLDERS = ("data_root", "runs_root")  # parameters that name a folder, relative to where the user stands


def read_notebook(path: Path) -> NotebookNode:
    """A notebook without its outputs.

    Raises:
        ValueError: If there is none.
    """
    if not path.is_file():
        raise ValueError(f"there is no notebook {path}")
    try:
        notebook = nbformat.read(path, as_version=4) if path.suffix == ".ipynb" else jupytext.read(path)
    except Exception as problem:
        raise ValueError(f"{path} cannot be read as a notebook: {first_line(str(problem))}") from None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "language": "python", "display_name": "Python 3"})
    return notebook


def defaults(notebook: NotebookNode, path: Path) -> dict[str, Any]:
    """The notebook's parameters and their defaults; None for one that is no literal.

    Raises:
        ValueError: If it has no parameters.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "notebook.ipynb")
        nbformat.write(notebook, copy)
        found = papermill.inspect_notebook(copy)
    if not found:
        raise ValueError(f"{path.name} has no parameters: tag the cell that sets them `parameters`")
    return {name: literal(parameter["default"]) for name, parameter in found.items()}


def literal(text: str) -> Any:
    """The truth value, number or text that a text spells, or None."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return value if type(value) in _KINDS else None


def checked_values(name: str, values: Any, known: Mapping, path: Path) -> Iterator[Any]:
    """The values of one parameter, each of the kind of its default: whole numbers for a weight become floats.

    Arguments:
        name: The parameter.
        values: What is given for it; numbers may be NumPy's.
        known: All parameters and their defaults.
        path: The notebook's file, to be named.

    Raises:
        ValueError: If the notebook has no such parameter, or a value is of another kind, not finite or there twice.
    """
    if name not in known:
        raise ValueError(f"`{name}` is no parameter of {path.name}; it has {', '.join(known)}")
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must list its values, got {values!r}")
    default, seen = known[name], []
    for value in values:
        value = value.item() if isinstance(value, np.generic) else value
        # 1 and 1.0 are one weight, but two configurations.
        value = float(value) if type(default) is float and type(value) is int else value
        fits = type(value) in _KINDS if default is None else type(value) is type(default)
        if not fits or (isinstance(value, float) and not math.isfinite(value)):
            kind = "text or a number" if default is None else f"{_KINDS[type(default)]}, like {default!r}"
            raise ValueError(f"`{name}` must be {kind}, got {value!r}")
        if name in _FOLDERS and value:
            value = str(Path(value).expanduser().resolve())
        if value in seen:
            raise ValueError(f"`{name}` lists {value!r} twice: list each value once")
        seen.append(value)
        yield value
    if not seen:
        raise ValueError(f"`{name}` has no values: list at least one")
