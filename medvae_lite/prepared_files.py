"""The files of a prepared folder, opened so that a damaged one is named in one sentence and none is taken for another.

What is cheap to see is seen here: a card that is no card, a table with text for numbers, an array of another length, type or
shape. A byte that changed within an array is noticed by `medvae_lite.datasets.verify`.
"""

from __future__ import annotations

import json
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["check_array", "check_numbers", "read_card", "read_table"]

FORMAT = 1
"""Of the prepared folders that this package reads."""
_AGAIN = "prepare the folder again"
# What numpy raises on a file that is no array, or not a whole one.
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, TypeError, KeyError, ArithmeticError, MemoryError, tokenize.TokenError)


def read_card(root: Path, kind: str, needed: str, *keys: str) -> dict:
    """The contents of `card.json`.

    Arguments:
        root: The prepared folder.
        kind: Of its data; "" for any.
        needed: That kind in words.
        keys: What it must say.

    Raises:
        ValueError: If it is damaged, of another format or kind, or lacks one of `keys`.
    """
    path = Path(root) / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no card ({type(error).__name__}): it is cut short or damaged; {_AGAIN}") from None
    if not isinstance(card, dict):
        raise ValueError(f"{path} must hold names and values, got a {type(card).__name__}; {_AGAIN}")
    if kind and card.get("kind") != kind:
        raise ValueError(f"`data_root` = {str(root)!r} holds {card.get('kind', 'other')!r} data, and this needs {needed}")
    if card.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{path} must be of format {FORMAT}, got {card['format']!r}; {_AGAIN} with this version")
    lacking = [key for key in keys if card.get(key) is None]
    if lacking:
        raise ValueError(f"{path} must say `{lacking[0]}` and does not; {_AGAIN}")
    return card


def read_table(path: Path, *, numbers: Sequence[str] = (), columns: Sequence[str] = (), **options) -> pd.DataFrame:
    """A table of a prepared folder.

    Arguments:
        path: The CSV file.
        numbers: Columns that must hold a finite number in every row.
        columns: Other columns that must be there, without gaps.
        options: Of `pandas.read_csv`.

    Raises:
        ValueError: If it is no such table.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, encoding="utf-8", **options)
    except (OSError, ValueError) as error:
        what = type(error).__name__
        raise ValueError(f"{path} cannot be read as a table ({what}): it is cut short or damaged; {_AGAIN}") from None
    missing = [name for name in (*columns, *numbers) if name not in table]
    if missing:
        raise ValueError(f"{path} must have the column `{missing[0]}`, got {', '.join(map(str, table.columns))[:200]}; {_AGAIN}")
    gaps = [name for name in columns if table[name].isna().any() or (table[name].astype(str) == "").any()]
    if gaps:
        raise ValueError(f"{path} must have no gap in the column `{gaps[0]}`; {_AGAIN}")
    check_numbers(table, numbers, path)
    return table


def check_numbers(table: pd.DataFrame, names: Sequence[str], path: Path) -> None:
    """Refuses columns that hold anything but finite numbers.

    Raises:
        ValueError: Naming the first, and what is in it.
    """
    for name in names:
        found = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
        wrong = ~np.isfinite(found)
        if wrong.any() or table[name].dtype == object:
            got = str(table[name].iloc[int(wrong.argmax())])[:40]
            raise ValueError(f"{path} must hold numbers in the column `{name}`, got {got}; {_AGAIN}")


def check_array(path: Path, dtype: str, *, ndim: int) -> None:
    """Refuses a `.npy` file that is cut short, or of another type or number of axes; only its header is read.

    Raises:
        ValueError: Saying which.
    """
    path = Path(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = isinstance(array, np.memmap) and path.stat().st_size == array.offset + array.nbytes
    except _DAMAGED:
        whole = False
    if not whole:
        raise ValueError(f"{path} is no whole array: it is cut short or damaged; {_AGAIN}")
    if array.dtype != np.dtype(dtype) or array.ndim != ndim:
        raise ValueError(f"{path} must be {dtype} with {ndim} axes, got {array.dtype} {array.shape}; {_AGAIN}")
