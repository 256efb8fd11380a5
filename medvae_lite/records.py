"""Run records at a glance, one beside another, and measured again: the command `python -m medvae_lite.runs`.

It lists records, shows one, compares two, and verifies them: exit status 1 if anything is not as it was written down.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import NoReturn

import pandas as pd
import torch
from tqdm import tqdm

from medvae_lite import reevaluate, runs
from medvae_lite.record_files import FAMILIES, MODELS, family_of, find, folders, read
from medvae_lite.reevaluate import Evaluator, check
from medvae_lite.train import TRAINING_CODE

__all__ = ["compare", "main", "show", "table"]

# The runs that the book publishes, beside the package in the project.
PUBLISHED = Path(__file__).resolve().parents[1] / "book" / "runs"
# What tells most of a run, by family.
_TELLING = {
    "cardiac": ("ssim", "perceptual", "scc"), "normative": ("error_all", "auc_patients", "slope"),
    "structured": ("ssim", "neg_elbo", "fd_prior"), "features": ("val_total",), "other": (),
}  # fmt: skip


def table(root: Path, *, family: str = "", like: str = "") -> tuple[pd.DataFrame, dict[str, str]]:
    """One row a record with all its metrics, and the reason of each folder that is none.

    Arguments:
        family: Only those of one family; folders that cannot be read belong to none and are always told.
        like: Only those whose name contains this.
    """
    rows, broken = [], {}
    for folder in folders(root):
        if like not in folder.name:
            continue
        try:
            record = read(folder)
        except ValueError as error:
            broken[folder.name] = str(error)
            continue
        last = record.epochs.iloc[-1]
        rows.append({
            "name": folder.name, "family": family_of(record.config), "class": record.config["model"]["class"],
            "seed": record.config["seed"], "steps": record.manifest["steps"], "minutes": record.manifest["seconds"] / 60,
            "data": record.config["data"], "code": record.manifest["code"], "weights": record.has_weights,
            "mb": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6,
            "val_total": last.get("val_total"), **record.metrics,
        })  # fmt: skip
    found = pd.DataFrame(rows, columns=None if rows else ["name", "family", "minutes", "mb", "weights"])
    return found[found["family"] == family] if family else found, broken


def _listed(found: pd.DataFrame, broken: dict[str, str]) -> str:
    lines = []
    for family in (*FAMILIES, "other"):
        of = found[found["family"] == family]
        if of.empty:
            continue
        widths = {name: max(len(name), 7) + 1 for name in _TELLING[family]}
        heads = "".join(f"{name:>{width}}" for name, width in widths.items())
        lines.append(f"{f'{family}: {len(of)}':53} seed  steps   min data  code  kept{heads}")
        for row in of.to_dict("records"):
            name = row["name"] if len(row["name"]) <= 53 else f"{row['name'][:43]}…{row['name'][-9:]}"
            values = "".join(f"{_number(row.get(metric), 4):>{width}}" for metric, width in widths.items())
            lines.append(
                f"{name:53} {row['seed']:4} {row['steps']:6} {row['minutes']:5.1f} {row['data'][:5]} {row['code'][:5]} "
                f"{'yes' if row['weights'] else 'no':4}{values}"
            )
        lines.append("")
    lines += [f"no record: {name}: {reason}; train it again or remove it" for name, reason in broken.items()]
    hours, mb, kept = found["minutes"].sum() / 60, found["mb"].sum(), int(found["weights"].sum())
    rest = f"; not counted: {len(broken)} that cannot be read" if broken else ""
    lines.append(f"{len(found)} runs, {hours:.1f} hours of training, {mb:.1f} MB; {kept} keep their weights{rest}")
    return "\n".join(lines)


def show(record: runs.RunRecord) -> str:
    """A record in words and tables."""
    name, manifest = record.folder.name, record.manifest
    kept = "weights kept" if record.has_weights else "no weights kept"
    lines = [name, f"{family_of(record.config)}, {manifest['steps']} steps in {manifest['seconds'] / 60:.1f} min, {kept}"]
    for title, values in (("configuration", _flat(record.config)), ("manifest", manifest), ("metrics", record.metrics)):
        width = max(map(len, values), default=0)
        lines += ["", title, *(f"  {key:{width}}  {_number(value)}" for key, value in sorted(values.items()))]
    lines += ["", f"epochs, {len(record.epochs)} rows"]
    width = max(map(len, record.epochs))
    lines.append(f"  {'':{width}}  {'first':>12} {'last':>12}")
    first, last = record.epochs.iloc[0], record.epochs.iloc[-1]
    lines += [f"  {key:{width}}  {_number(first[key]):>12} {_number(last[key]):>12}" for key in record.epochs]
    return "\n".join([*lines, "", "code", f"  {_code(record)}"])


def _code(record: runs.RunRecord) -> str:
    """What can be said of the code that made a record: a hash over six modules is all that it keeps."""
    was, now, modules = record.manifest["code"], runs.code_hash(*TRAINING_CODE), ", ".join(TRAINING_CODE)
    if was == now:
        text = f"{was[:8]}: today's {modules} are the code that trained it, comments and layout apart."
    elif runs.trains_the_same(was, now):
        text = (
            f"{was[:8]}, today {now[:8]}: {modules} have changed since, and train the same: published runs of every kind were trained again and "
            "have the same weights, byte for byte."
        )
    else:
        text = (
            f"{was[:8]}, today {now[:8]}: at least one of {modules} has changed since. The record keeps one hash of all, so it "
            "cannot say which."
        )
    kind = record.config["model"]["class"]
    module = MODELS[kind][0].__module__.rpartition(".")[2] if kind in MODELS else ""
    if module not in TRAINING_CODE:
        where = f"{module}.py, which holds" if module else "the module of"
        text += f" The hash leaves out {where} {kind}; `verify` tests what that gives today."
    for name, version in runs.environment().items():
        if record.manifest.get(name, version) != version:
            text += f" It ran on {name} {record.manifest[name]}, here is {version}."
    return text


def compare(a: runs.RunRecord, b: runs.RunRecord) -> str:
    """What differs between two records; metrics with the largest relative difference first."""
    lines = [f"A  {a.folder.name}", f"B  {b.folder.name}"]
    same = []
    for title, one, other in (("configuration", _flat(a.config), _flat(b.config)), ("manifest", a.manifest, b.manifest)):
        rows = [(key, one.get(key), other.get(key)) for key in sorted(one.keys() | other.keys())]
        rows = [row for row in rows if row[1] != row[2]]
        same += [title] if not rows else []
        lines += ["", title, *_columns(rows)] if rows else []
    differences = reevaluate.compare(a.metrics, b.metrics)
    rows = [(d.name, d.stored, d.found, *_change(d)) for d in differences if d.size]
    same += ["metrics"] if not rows else []
    if rows:
        lines += ["", "metrics", *_columns([("", "A", "B", "B - A", "relative"), *rows])]
        lines += [f"  and {len(differences) - len(rows)} that are equal"] if len(rows) < len(differences) else []
    for file in ("epochs.csv", runs.WEIGHTS):
        one, other = ((r.folder / file).read_bytes() if (r.folder / file).is_file() else None for r in (a, b))
        if one == other:
            same += [file] if one is not None else []
        else:
            lines += ["", f"{file}: {'kept by B only' if one is None else 'kept by A only' if other is None else 'differs'}"]
    if same:
        lines += ["", f"identical: {', '.join(same)}" + ("; nothing differs" if len(lines) == 2 else "")]
    return "\n".join(lines)


def _change(d: reevaluate.Difference) -> tuple[str, str]:
    return ("-", "-") if d.size == inf else (f"{d.found - d.stored:+.4g}", f"{d.size:.2g}")


def _columns(rows: list[tuple]) -> list[str]:
    cells = [[_number(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    lines = [row[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:])) for row in cells]
    return [f"  {line}" for line in lines]


def _flat(config: dict, prefix: str = "") -> dict:
    """Nested settings by dotted key."""
    flat = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _number(value: object, digits: int = 6) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _sample(known: list[Path], count: int, seed: int) -> set[Path]:
    """So many of each family, of those that keep weights."""
    groups: dict[str, list[Path]] = {}
    for folder in known:
        try:
            record = read(folder)
        except ValueError:
            continue
        if record.has_weights:
            groups.setdefault(family_of(record.config), []).append(folder)
    draws = {family: random.Random(f"{seed}-{family}") for family in groups}
    return {folder for family, of in groups.items() for folder in draws[family].sample(of, min(count, len(of)))}


def _chosen(root: Path, names: Sequence[str], family: str) -> list[Path]:
    """Every record whose name contains one of `names`, of one family if that is given; damaged ones belong to all."""
    found: set[Path] = set()
    for text in names:
        found |= {folder for folder in folders(root) if text in folder.name} or {find(root, text)}
    chosen = [f for f in sorted(found) or folders(root) if not family or _family(f) in (family, "")]
    if not chosen:
        raise ValueError(f"`--family` = {family} must be that of a run among those named, and none is; `list` shows them")
    return chosen


def _family(folder: Path) -> str:
    """A record's family, "" if it cannot be read."""
    try:
        return family_of(read(folder).config)
    except ValueError:
        return ""


def _verify(args: argparse.Namespace) -> int:
    known = _chosen(args.root, args.names, args.family)
    measured = set(known) if args.sample is None else _sample(known, args.sample, args.seed)
    torch.set_num_threads(1)  # as published runs are made
    roots = dict.fromkeys([*(folder.parent for folder in known), PUBLISHED])
    evaluator = Evaluator(_phantom() if measured else None, roots, _prepared(args.data))
    results = []
    bar = tqdm(known, disable=None, unit="run", leave=False)
    for folder in bar:
        result = check(folder, evaluator, measure=folder in measured)
        results.append(result)
        if folder in measured or result.status not in ("same", "files"):
            bar.write(f"{result.status:8}{result.name}: {result.text}", file=sys.stdout)
            sys.stdout.flush()
    counts = Counter(result.status for result in results)
    worst = reevaluate.largest(r.largest for r in results if r.status == "same" and r.largest)
    print(
        f"{len(results)} runs: {counts['same']} measured again and the same, {counts['files']} with their files in order, "
        f"{counts['differs']} that differ, {counts['broken']} broken, {counts['open']} that could not be measured"
    )
    if worst:
        most = f"{worst.size:.1e} ({worst.name})" if worst.size else "none, to the last digit"
        print(
            f"largest relative difference among the same: {most}; allowed are {reevaluate.TOLERANCE:g}, and "
            f"{reevaluate.COARSE:g} where pixels past a threshold are counted"
        )
    return int(any(counts[status] for status in ("differs", "broken", "open")))


def _phantom():
    # By name and only when wanted: the package stands without data_prep, and this command is given what makes phantoms.
    try:
        return importlib.import_module("data_prep").phantom
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`verify` makes the phantoms again and needs the package data_prep (no module {error.name}): run it in the "
            "project's root after `make env`, or give --sample 0 to check files only"
        ) from error


def _prepared(data: list[Path]) -> list[Path]:
    for folder in data:
        if not (folder / "card.json").is_file():
            raise ValueError(f"`--data` must be a folder made by `python -m data_prep`, got {str(folder)!r}")
    return data


def _list(args: argparse.Namespace) -> int:
    found, broken = table(args.root, family=args.family, like=args.like)
    if args.csv:
        told = pd.DataFrame([{"name": name, "broken": reason} for name, reason in broken.items()])
        print(pd.concat([found, told]).to_csv(index=False, lineterminator="\n"), end="")
    else:
        print(_listed(found, broken))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Ends with one sentence and status 2; the full usage is for --help."""
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="python -m medvae_lite.runs", description=__doc__.replace("`", ""))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = lambda name, text: commands.add_parser(name, help=text, description=text)
    family = {"choices": FAMILIES, "default": "", "help": "only the runs of one part of the book"}
    root = {"type": Path, "default": PUBLISHED, "help": "folder of run records; the published ones by default"}
    listed = add("list", "one line a record")
    listed.add_argument("root", nargs="?", metavar="ROOT", **root)
    listed.add_argument("--family", **family)
    listed.add_argument("--like", default="", metavar="TEXT", help="only names that contain TEXT")
    listed.add_argument("--csv", action="store_true", help="every metric of every record, as CSV")
    shown = add("show", "all of one record")
    shown.add_argument("name", metavar="NAME", help="part of its name, or its folder")
    compared = add("compare", "what differs between two records")
    compared.add_argument("a", metavar="A", help="part of a name, or a folder")
    compared.add_argument("b", metavar="B")
    verified = add("verify", "measure runs again from their weights")
    verified.add_argument("names", nargs="*", metavar="NAME", help="parts of names: every run that has one; all by default")
    verified.add_argument("--sample", type=_count, metavar="N", help="measure N of each family; 0 checks files only")
    verified.add_argument("--seed", type=_count, default=0, metavar="S", help="which ones are drawn")
    verified.add_argument("--family", **family)
    own = "prepared data of your own that runs were trained on; may be given several times"
    verified.add_argument("--data", type=Path, action="append", default=[], metavar="FOLDER", help=own)
    for command in (shown, compared, verified):
        command.add_argument("--root", metavar="ROOT", **root)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 something differs, 2 refused, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "list":
            return _list(args)
        if args.command == "verify":
            return _verify(args)
        names = [args.name] if args.command == "show" else [args.a, args.b]
        found = []
        for folder in [find(args.root, name) for name in names]:
            try:
                found.append(read(folder))
            except ValueError as error:
                raise ValueError(f"{folder.name} cannot be read: {error}; train it again") from None
        print(show(*found) if args.command == "show" else compare(*found))
        return 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was changed\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
