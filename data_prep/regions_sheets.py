"""Tables as text, and from them who the people are: age, sex, group, site and scores by their canonical names."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

_MISSING = re.compile(r"-(\d)\1*(\.0+)?")

__all__ = ["numbers", "one_row_each", "people_table", "read_cells", "read_sheet", "sex_letters", "text_of"]


def read_cells(path: str | os.PathLike) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table separated by tabs, commas or white space, as text.

    Raises:
        ValueError: the file is no such table, or a row has more or fewer cells than the header.
        OSError: it cannot be read.
    """
    lines = text_of(path).splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    if not numbers:
        raise ValueError(f"`{Path(path).name}` is empty; export the table again.")
    mark = next((mark for mark in "\t," if mark in lines[numbers[0] - 1]), None)
    try:
        # Line by line, so that a quotation mark never closed costs its own row and not the rest of the table.
        rows = [next(csv.reader([lines[i - 1]], delimiter=mark)) if mark else lines[i - 1].split() for i in numbers]
    except (csv.Error, StopIteration):
        raise ValueError(f"`{Path(path).name}` must be a table separated by tabs, commas or white space.") from None
    rows = [[cell.strip().strip('"') for cell in row] for row in rows]
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"`{Path(path).name}` line {number} must have as many cells as the header, {len(rows[0])}, "
                f"got {len(row)}; mend the line."
            )
    return rows[0], rows[1:]


def text_of(path: str | os.PathLike) -> str:
    """A file as text.

    Raises:
        ValueError: it is not in UTF-8, or holds NUL bytes.
        FileNotFoundError, OSError: it is missing, no file, or may not be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"`{path.name}` must be text in UTF-8; save it again in that encoding.") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"`{path.name}` is missing; add it or mend the path.") from None
    except OSError as error:
        what = type(error).__name__
        raise OSError(f"`{path.name}` must be a file that can be read, got {what}; mend the path or its rights.") from None
    if "\0" in text:
        raise ValueError(f"`{path.name}` must be text, and holds NUL bytes; save it again as CSV in UTF-8.")
    return text


def read_sheet(path: Path, columns: Sequence[str], rename: Mapping[str, str] | None = None) -> pd.DataFrame:
    """A table of covariates as text, with the columns it must have; blank cells are missing."""
    header, rows = read_cells(path)
    header = [(rename or {}).get(name, name) for name in header]
    for name in columns:
        if header.count(name) != 1:
            raise ValueError(
                f"`{path.name}` must have one column `{name}`, got {header.count(name)}; "
                f"its columns begin {', '.join(header[:6])[:120]}."
            )
    table = pd.DataFrame(rows, columns=header, dtype=object)
    table = table.loc[:, ~table.columns.duplicated()].astype("string")
    return table.mask(table.isin(["", "NA", "NaN", "nan"]))


def people_table(
    sheet: pd.DataFrame,
    where: str,
    *,
    key: str,
    age: str,
    sex: pd.Series,
    group: pd.Series,
    site: str,
    scores: Mapping[str, tuple[float, float]] = {},
) -> pd.DataFrame:
    """Covariates by their canonical names and scores in small letters, one row a person; `scores` gives their limits."""
    if sheet[key].isna().any():
        raise ValueError(f"`{where}` must say in every row who it is, got an empty `{key}`; fill it in.")
    columns = {"age_years": numbers(sheet[age], f"`{where}`: `{age}`", (0, 120)), "sex": sex, "group": group}
    columns["site"] = sheet[site].fillna("unknown") if site in sheet else pd.Series("unknown", index=sheet.index)
    columns |= {name.lower(): numbers(sheet[name], f"`{where}`: `{name}`", limits) for name, limits in scores.items()}
    table = pd.DataFrame(columns).astype({name: object for name in ("sex", "group", "site")})
    table = table.set_axis(pd.Index(sheet[key].astype(object), name="subject"))
    one_row_each(pd.Series(table.index), f"`{where}`")
    return table


def numbers(values: pd.Series, where: str, limits: tuple[float, float]) -> pd.Series:
    """Text as numbers; blanks and the codes for missing (below 0, of one digit repeated: -1, -4, -99, -9999) are missing.

    Args:
        values: (N,) text.
        where: the table and the column, for messages.
        limits: the least and the largest number that can be.

    Raises:
        ValueError: one is no number, or beyond the limits.
    """
    found = pd.to_numeric(values, errors="coerce").astype(float)
    strange = values[found.isna() & values.notna()]
    if len(strange):
        raise ValueError(f"{where} must hold numbers, got {strange.iloc[0]!r}; mend or empty the cell.")
    found = found.mask(values.astype("string").str.fullmatch(_MISSING).fillna(False).astype(bool))
    beyond = values[found.notna() & ~found.between(*limits)]
    if len(beyond):
        raise ValueError(f"{where} must be from {limits[0]:g} to {limits[1]:g}, got {beyond.iloc[0]!r}; mend or empty the cell.")
    return found


def one_row_each(people: pd.Series, where: str) -> None:
    """Refuses a column (N,) of identifiers that holds one twice.

    Raises:
        ValueError: naming the person.
    """
    if people.duplicated().any():
        raise ValueError(
            f"{where} holds the subject {people[people.duplicated()].iloc[0]!r} twice; keep one row a person."
        )


def sex_letters(values: pd.Series, coding: Mapping[str, str] | None = None) -> pd.Series:
    """Sex as F or M, from letters or words, or from numbers whose coding is given; blank cells stay missing.

    Args:
        values: (N,) text, the index the position of the row, as `read_sheet` gives it.
        coding: such as {"1": "M", "2": "F"}. Cohorts use 1/2, 1/0 and 0/1, so no number is guessed.

    Raises:
        ValueError: a value is neither word nor coded number.
    """
    words = {"m": "M", "male": "M", "f": "F", "female": "F"}
    words |= {str(key).lower(): letter for key, letter in (coding or {}).items()}
    text = values.astype("string").str.strip().str.lower().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    text = text.mask(text.isin(["", "na", "nan"]))
    strange = text[text.notna() & ~text.isin(list(words))]
    if len(strange):
        known = ", ".join(f"{key}={letter}" for key, letter in (coding or {}).items())
        mend = (
            f"or {known}"
            if known
            else "since numbers mean either; for numbers say which is which, such as --sex 1=M,2=F"
        )
        raise ValueError(f"sex must be M or F {mend}, got {strange.iloc[0]!r} in row {strange.index[0] + 2}.")
    return text.map(words)
