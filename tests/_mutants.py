"""Small injuries to files, by name: what happens to NIfTI files, tables and prepared folders on disks and in spreadsheets.

A kind takes a path and a generator and changes the file in place. Each says what may come of it: a reader that gives another
result, or an error nobody wrote a sentence for, has failed.
"""

import gzip
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

SAID = frozenset({"refused", "left out"})
HARMLESS = SAID | {"same"}
ANY = HARMLESS | {"changed legally"}


class Kind(NamedTuple):
    """A kind of injury: `apply(path, rng)` does it, `allowed` may come of it, and `why` says why another result may be right."""

    name: str
    apply: Callable
    allowed: frozenset
    on: str = ""  # only files with this role: image or mask, gz or nii
    why: str = ""


# --- NIfTI ----------------------------------------------------------------------------------------

DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, INTER, UNITS = 40, 70, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERNION, SROW = 252, 254, 256, 280


def unpacked(path: Path) -> bytearray:
    data = path.read_bytes()
    return bytearray(gzip.decompress(data) if path.name.endswith(".gz") else data)


def put(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(bytes(data), 1, mtime=0) if path.name.endswith(".gz") else bytes(data))


def flip(data: bytearray, at: int, rng) -> bytearray:
    data[at] ^= int(rng.integers(1, 256))
    return data


def header(form: str, place, value) -> Callable:
    """Puts a value into the header; `place` and `value` may be functions of the generator."""

    def apply(path, rng):
        data = unpacked(path)
        at, what = (thing(rng) if callable(thing) else thing for thing in (place, value))
        struct.pack_into(f"<{form}", data, at, what)
        put(path, data)

    return apply


def one_of(*values) -> Callable:
    return lambda rng: values[int(rng.integers(len(values)))]


def voxels(change: Callable) -> Callable:
    """Changes the array and writes the file anew, with the same place in space."""

    def apply(path, rng):
        image = nib.load(path)
        image.header.set_data_dtype(np.float32)
        changed = change(np.asarray(image.dataobj).astype(np.float32), rng)
        again = nib.Nifti1Image(changed, image.affine, image.header)
        path.unlink()
        nib.save(again, path)

    return apply


def a_side(rng):
    return PIXDIM + 4 * int(rng.integers(1, 4))


def scaled_pixdim(path, rng):
    data, at = unpacked(path), a_side(rng)
    side = struct.unpack_from("<f", data, at)[0] * float(rng.choice([1e-3, 0.1, 10, 1e3, 1e6, 1e20]))
    struct.pack_into("<f", data, at, side)
    put(path, data)


def srow_zero(path, rng):
    data = unpacked(path)
    data[SROW : SROW + 48] = bytes(48)
    put(path, data)


def other_dim(path, rng):
    data = unpacked(path)
    place = int(rng.integers(0, struct.unpack_from("<h", data, DIM)[0] + 1))
    value = struct.unpack_from("<h", data, DIM + 2 * place)[0]
    struct.pack_into("<h", data, DIM + 2 * place, int(rng.choice([0, -1, value - 1, value + 1, 2 * value, 32767])))
    put(path, data)


def not_finite(array, rng):
    """Some voxels NaN or infinite, at the same places of every frame."""
    places = tuple(rng.integers(0, size, 5) for size in array.shape[:3])
    array[places] = rng.choice([np.nan, np.inf, -np.inf])
    return array


def some_unknown(array, rng):
    """One label more, of a value that means nothing."""
    inside = np.argwhere(array > 0)
    for place in inside[rng.integers(0, len(inside), 5)]:
        array[tuple(place)] = 99
    # In every frame, so that it is in those that are read.
    return np.where((array == 99).any(axis=3, keepdims=True), 99, array) if array.ndim == 4 else array


def as_directory(path, rng):
    path.unlink()
    path.mkdir()


def truncated(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[: max(1, len(data) - int(rng.choice([1, 4, 8, rng.integers(1, len(data))])))])


def text_instead(path, rng):
    path.write_text("<html><body>404 Not Found</body></html>\n" * int(rng.integers(1, 30)))


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    path.write_bytes(flip(data, int(rng.integers(len(data))), rng))


FLIPPED_HEADER = "a header with another byte may be a valid header of another scan"
FLIPPED_VOXEL = "another grey value or label is as valid as the first"
HARMLESS_BYTE = "the time, the name and the system in a gzip header say nothing of the image"
NIFTI = (
    Kind("file cut short", truncated, SAID),
    Kind("byte flipped in the header", lambda p, r: put(p, flip(unpacked(p), int(r.integers(348)), r)), ANY, why=FLIPPED_HEADER),
    Kind("byte flipped in the voxels", lambda p, r: put(p, flip(data := unpacked(p), int(r.integers(352, len(data))), r)), ANY,
         why=FLIPPED_VOXEL),
    Kind("gzip damaged", flipped, HARMLESS, "gz", HARMLESS_BYTE),
    Kind("dim", other_dim, HARMLESS),
    Kind("pixdim zero", header("f", a_side, 0.0), HARMLESS),
    Kind("pixdim negative", header("f", a_side, lambda r: -float(r.uniform(0.5, 9))), HARMLESS),
    Kind("pixdim not finite", header("f", a_side, one_of(np.nan, np.inf)), HARMLESS),
    Kind("pixdim in another unit", scaled_pixdim, HARMLESS),
    Kind("datatype", header("h", DATATYPE, one_of(0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1792, 9999)), HARMLESS),
    Kind("scl_slope", header("f", one_of(SLOPE, INTER), one_of(np.nan, 0.0, np.inf, -np.inf, 1e30)), HARMLESS),
    Kind("vox_offset", header("f", VOX_OFFSET, one_of(0.0, 16.0, 353.0, 368.0, 1e5, 1e30, -352.0, np.nan, np.inf)), HARMLESS),
    Kind("sform nonsense", header("f", lambda r: SROW + 4 * int(r.integers(12)), one_of(np.nan, np.inf, 1e20, -1e6)), HARMLESS),
    Kind("sform zero", srow_zero, HARMLESS),
    Kind("sform_code", header("h", SFORM_CODE, one_of(0, -1, 77)), HARMLESS),
    Kind("qform nonsense", header("f", lambda r: QUATERNION + 4 * int(r.integers(6)), one_of(np.nan, np.inf, 5.0, 1e20)),
         HARMLESS),
    Kind("qform_code", header("h", QFORM_CODE, one_of(0, -1, 77)), HARMLESS),
    Kind("units", header("B", UNITS, one_of(1, 3, 4, 7, 9, 11)), SAID),
    Kind("all voxels NaN", voxels(lambda a, r: a * np.nan), SAID),
    Kind("some voxels not finite", voxels(not_finite), SAID),
    Kind("constant image", voxels(lambda a, r: a * 0 + float(r.choice([0, 1, 100]))), SAID, "image"),
    Kind("mask of zeros", voxels(lambda a, r: a * 0), SAID, "mask"),
    Kind("mask of ones", voxels(lambda a, r: a * 0 + 1), SAID, "mask"),
    Kind("labels fractional", voxels(lambda a, r: (a * r.uniform(0.1, 0.9, a.shape)).astype(np.float32)), SAID, "mask"),
    Kind("labels negative", voxels(lambda a, r: -a), SAID, "mask"),
    Kind("labels unknown", voxels(some_unknown), SAID, "mask"),
    Kind("mask of another shape", voxels(lambda a, r: np.delete(a, 0, int(r.integers(3)))), SAID, "mask"),
    Kind("empty file", lambda p, r: p.write_bytes(b""), SAID),
    Kind("text for an image", text_instead, SAID),
    Kind("directory in its place", as_directory, SAID),
    Kind("missing", lambda p, r: p.unlink(), SAID),
)  # fmt: skip


# --- tables ---------------------------------------------------------------------------------------

NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")


def mark_of(text: str) -> str:
    return next((mark for mark in "\t," if mark in text.split("\n")[0]), ",")


def cells(path: Path) -> tuple[list[list[str]], str]:
    text = path.read_text(encoding="utf-8")
    mark = mark_of(text)
    return [line.split(mark) for line in text.rstrip("\n").split("\n")], mark


def save(path: Path, rows: list[list[str]], mark: str) -> None:
    path.write_text("\n".join(mark.join(row) for row in rows) + "\n", encoding="utf-8")


def table(change: Callable) -> Callable:
    """Changes a table given as rows of cells, the header the first."""

    def apply(path, rng):
        rows, mark = cells(path)
        save(path, change(rows, rng) or rows, mark)

    return apply


IDS = ("External code", "subject", "Subject", "Image Data ID", "SUB_ID", "RID", "eid", "f.eid", "field", "name")


def who(header: list[str]) -> list[int]:
    """The columns that say who or what a row is."""
    return [at for at, name in enumerate(header) if name.strip('"') in IDS] or [0]


def some_cell(rows, rng) -> tuple[int, int]:
    """A cell that holds a number, or, where there is none, the last one."""
    ids = who(rows[0])
    found = [(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row)
             if i and j not in ids and NUMBER.fullmatch(cell.strip('"'))]  # fmt: skip
    return found[int(rng.integers(len(found)))] if found else (len(rows) - 1, len(rows[-1]) - 1)


def number(value: Callable) -> Callable:
    """Replaces one number."""

    def change(rows, rng):
        i, j = some_cell(rows, rng)
        cell = rows[i][j].strip('"')
        quote = '"' if rows[i][j].startswith('"') else ""
        rows[i][j] = f"{quote}{value(cell if NUMBER.fullmatch(cell) else '9', rng)}{quote}"

    return table(change)


def fewer_cells(rows, rng):
    i = int(rng.integers(1, len(rows)))
    rows[i] = rows[i][: int(rng.integers(1, len(rows[i])))] if len(rows[i]) > 1 else rows[i]


def without_column(rows, rng):
    at = int(rng.integers(len(rows[0])))
    return [row[:at] + row[at + 1 :] for row in rows]


def column_twice(rows, rng):
    at = int(rng.integers(len(rows[0])))
    return [[*row, row[at]] for row in rows]


def row_twice(rows, rng):
    rows.append(list(rows[int(rng.integers(1, len(rows)))]))


def renamed(rows, rng):
    i = int(rng.integers(1, len(rows)))
    at = int(rng.choice(who(rows[0])))
    quote = '"' if rows[i][at].endswith('"') else ""
    rows[i][at] = f"{rows[i][at].removesuffix(quote) if quote else rows[i][at]}77{quote}"


def inserted(what: bytes) -> Callable:
    """Puts bytes somewhere after the first cell of the first row."""

    def apply(path, rng):
        data = path.read_bytes()
        at = int(rng.integers(3, len(data)))
        path.write_bytes(data[:at] + what + data[at:])

    return apply


def open_quote(rows, rng):
    i, j = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    rows[i][j] = '"' + rows[i][j].strip('"')


def other_separator(path, rng):
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mark_of(text), str(rng.choice([";", "|"]))), encoding="utf-8")


def padded(path, rng):
    rows, mark = cells(path)
    save(path, [[f" {cell}  " if rng.random() < 0.3 else cell for cell in row] for row in rows], mark)


def mixed_endings(path, rng):
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"".join(line + (b"\r\n" if rng.random() < 0.5 else b"\n") for line in lines if line))


def decimal_comma(cell, rng):
    whole, point, part = cell.partition(".")
    return f"{whole},{part or 5}"


def thousandfold(cell, rng):
    return f"{float(cell or 9) * float(rng.choice([1e3, 1e6])):.10g}"


BLANK = "an empty cell says that something is not known, where it need not be known"
TABLE = (
    Kind("line cut short", table(fewer_cells), HARMLESS),
    Kind("column missing", table(without_column), HARMLESS),
    Kind("column twice", table(column_twice), HARMLESS),
    Kind("row twice", table(row_twice), HARMLESS),
    Kind("text for a number", number(lambda c, r: str(r.choice(["?", "n.a.", "12 mm", "1O5", "O"]))), HARMLESS),
    Kind("NaN for a number", number(lambda c, r: "NaN"), HARMLESS),
    Kind("infinite number", number(lambda c, r: str(r.choice(["inf", "-inf", "1e400"]))), HARMLESS),
    Kind("negative number", number(lambda c, r: f"-{c.lstrip('-+') or 3}"), HARMLESS),
    Kind("number in another unit", number(thousandfold), HARMLESS),
    Kind("decimal comma", number(decimal_comma), HARMLESS),
    Kind("other separator", other_separator, HARMLESS),
    Kind("byte order mark", lambda p, r: p.write_bytes(b"\xef\xbb\xbf" + p.read_bytes()), HARMLESS),
    Kind("Latin-1", inserted(b"\xe9"), HARMLESS),
    Kind("NUL bytes", inserted(b"\x00"), HARMLESS),
    Kind("empty file", lambda p, r: p.write_bytes(b""), SAID),
    Kind("header only", table(lambda rows, r: rows[:1]), SAID),
    Kind("quote never closed", table(open_quote), HARMLESS),
    Kind("subject renamed", table(renamed), HARMLESS),
    Kind("white space", padded, HARMLESS),
    Kind("mixed line endings", mixed_endings, HARMLESS),
    Kind("directory in its place", as_directory, SAID),
    Kind("missing", lambda p, r: p.unlink(), SAID),
)


# --- free text: FreeSurfer's stats, ACDC's Info.cfg -------------------------------------------------


def word(value: Callable) -> Callable:
    """Replaces one number that stands by itself, in a line that is no comment unless it is a measure."""

    def apply(path, rng):
        text = path.read_text(encoding="utf-8")
        lines = text.split("\n")
        found = [
            (i, match)
            for i, line in enumerate(lines)
            if not line.startswith("#") or line.startswith("# Measure ")
            for match in re.finditer(r"(?<![\w.-])\d+(\.\d+)?(?![\w.-])", line)
        ]
        i, match = found[int(rng.integers(len(found)))]
        lines[i] = lines[i][: match.start()] + value(match[0], rng) + lines[i][match.end() :]
        path.write_text("\n".join(lines), encoding="utf-8")

    return apply


def line_lost(path, rng):
    lines = path.read_text(encoding="utf-8").split("\n")
    del lines[int(rng.integers(max(1, len(lines) - 1)))]
    path.write_text("\n".join(lines), encoding="utf-8")


def line_twice(path, rng):
    lines = path.read_text(encoding="utf-8").split("\n")
    at = int(rng.integers(max(1, len(lines) - 1)))
    path.write_text("\n".join([*lines[: at + 1], *lines[at:]]), encoding="utf-8")


def cut_anywhere(path, rng):
    data = path.read_bytes().rstrip(b"\n")
    path.write_bytes(data[: data[: int(rng.integers(8, len(data)))].rfind(b"\n") + 2])


ALIKE = ("byte order mark", "Latin-1", "NUL bytes", "empty file", "mixed line endings", "directory in its place", "missing")
TEXT = (
    Kind("file cut short", cut_anywhere, HARMLESS),
    Kind("line missing", line_lost, HARMLESS),
    Kind("line twice", line_twice, HARMLESS),
    Kind("text for a number", word(lambda c, r: str(r.choice(["?", "n.a.", "1O5"]))), HARMLESS),
    Kind("NaN for a number", word(lambda c, r: "NaN"), HARMLESS),
    Kind("infinite number", word(lambda c, r: str(r.choice(["inf", "-inf", "1e400"]))), HARMLESS),
    Kind("negative number", word(lambda c, r: f"-{c}"), HARMLESS),
    Kind("number in another unit", word(thousandfold), HARMLESS),
    Kind("decimal comma", word(decimal_comma), HARMLESS),
    *(kind for kind in TABLE if kind.name in ALIKE),
)


# --- prepared folders -----------------------------------------------------------------------------


def card(change: Callable) -> Callable:
    def apply(path, rng):
        told = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(change(told, rng)), encoding="utf-8")

    return apply


def without_key(told, rng):
    del told[sorted(told)[int(rng.integers(len(told)))]]
    return told


def null_key(told, rng):
    return told | {sorted(told)[int(rng.integers(len(told)))]: None}


def array(change: Callable) -> Callable:
    def apply(path, rng):
        changed = change(np.load(path), rng)
        path.unlink()
        np.save(path, changed)

    return apply


def with_nan(values, rng):
    values = values.astype(np.float32) if values.dtype.kind != "f" else values
    values[tuple(rng.integers(0, size) for size in values.shape)] = np.nan
    return values


def npy_header(path, rng):
    data = bytearray(path.read_bytes())
    path.write_bytes(flip(data, int(rng.integers(0, 80)), rng))


def npy_data(path, rng):
    data = bytearray(path.read_bytes())
    path.write_bytes(flip(data, int(rng.integers(128, len(data))), rng))


ARRAY = (
    Kind("array cut short", truncated, SAID),
    Kind("array header damaged", npy_header, HARMLESS),
    Kind("byte flipped in an array", npy_data, SAID),
    Kind("array of another shape", array(lambda a, r: a[:-1]), SAID),
    Kind("array of another type", array(lambda a, r: a.astype(np.float64) if a.dtype != np.float64 else a.astype("S8")), SAID),
    Kind("array of objects", array(lambda a, r: np.array([{}, None], dtype=object)), SAID),
    Kind("NaN in an array", array(with_nan), SAID),
    Kind("empty file", lambda p, r: p.write_bytes(b""), SAID),
    Kind("directory in its place", as_directory, SAID),
    Kind("missing", lambda p, r: p.unlink(), SAID),
)
CARD = (
    Kind("card cut short", lambda p, r: p.write_bytes(p.read_bytes()[: int(r.integers(1, p.stat().st_size - 2))]), SAID),
    Kind("card of another kind", card(lambda c, r: c | {"kind": "another"}), SAID),
    Kind("card of another format", card(lambda c, r: c | {"format": 99}), SAID),
    Kind("card without a key", card(without_key), HARMLESS),
    Kind("card with an empty key", card(null_key), HARMLESS),
    Kind("card is a list", card(lambda c, r: list(c)), SAID),
    Kind("empty file", lambda p, r: p.write_bytes(b""), SAID),
    Kind("Latin-1", inserted(b"\xe9"), SAID),
    Kind("directory in its place", as_directory, SAID),
    Kind("missing", lambda p, r: p.unlink(), SAID),
)


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
