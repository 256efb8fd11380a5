"""The commands `acdc`, `mnms` and `ukbb`: real short-axis collections into the prepared folder."""

import argparse
import logging
from pathlib import Path

import joblib

from data_prep.cardiac_layouts import LAYOUTS
from data_prep.cardiac_pair import Options
from data_prep.cardiac_run import run
from data_prep.cardiac_write import FAILURE

log = logging.getLogger(__name__)

ALL_WELL, SOME_FAILED, STOPPED = 0, 3, 130
STATUS = """exit status: 0 all went well (subjects left out by the quality filter included); 2 refused,
nothing was written; 3 written, but some subjects failed (see the table, mend them, remove OUT and run again);
130 stopped by hand (the same command goes on from there)."""


def add_commands(subparsers) -> None:
    """Register one command per layout on argparse's `subparsers`; each sets `func(args) -> exit status`."""
    for layout in LAYOUTS.values():
        command = subparsers.add_parser(
            layout.name,
            help=f"prepare {layout.source}",
            epilog=STATUS,
            description=f"Prepare the ED and ES basal slices of {layout.source}. "
            f"RAW holds {layout.expected}. The run can be stopped at any time: the same command goes on.",
        )
        command.add_argument("raw", metavar="RAW", type=Path, help="folder of the collection, only read")
        command.add_argument("out", metavar="OUT", type=Path, help="prepared folder to make")
        _add_picture_options(command)
        _add_cohort_options(command, layout.label_map)
        command.set_defaults(func=main, layout=layout.name)


def _add_picture_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--size", type=int, default=128, help="side of the square crop in pixels (default: %(default)s)")
    add(
        "--spacing-mm",
        type=spacing,
        default=1.25,
        metavar="MM|native",
        help="pixel side after resampling; `native` keeps each subject's own, as in the paper "
        "(default: %(default)s)",
    )
    add(
        "--same-level",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take the ED and ES slice at one level of the stack, or each by its own mask "
        "(default: one level)",
    )
    add(
        "--align",
        choices=("ed", "each"),
        default="ed",
        help="pose both frames by the ED mask, so that only the heart moves between them, or, as in the "
        "paper, each frame by its own mask (default: %(default)s)",
    )
    add(
        "--intensity",
        choices=("percentile", "minmax"),
        default="percentile",
        help="scale each frame to [0, 1] by its 0.5 and 99.5 percentiles, or, as in the paper, by its least "
        "and greatest value (default: %(default)s)",
    )


def _add_cohort_options(command: argparse.ArgumentParser, label_map: tuple[int, int, int]) -> None:
    add = command.add_argument
    lv, myo, rv = label_map
    add(
        "--label-map",
        type=labels,
        default=label_map,
        metavar="lv=A,myo=B,rv=C",
        help=f"what the mask's values mean (default: lv={lv},myo={myo},rv={rv})",
    )
    add(
        "--min-slices",
        type=int,
        default=6,
        help="quality filter: fewest consecutive slices with LV and myocardium (default: %(default)s)",
    )
    add(
        "--min-pixels",
        type=int,
        default=10,
        help="quality filter: fewest pixels of a region that counts as present (default: %(default)s)",
    )
    add(
        "--split",
        type=fractions,
        default=(0.70, 0.15, 0.15),
        metavar="TRAIN,VAL,TEST",
        help="fractions of the subjects, each diagnostic group in proportion (default: 0.70,0.15,0.15)",
    )
    add("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    add(
        "--workers",
        type=positive,
        default=joblib.cpu_count(),
        help="subjects prepared at a time; the result does not depend on it (default: all cores)",
    )


def spacing(text: str) -> float | None:
    """A number of millimetres, or None for `native`."""
    if text == "native":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be millimetres such as 1.25, or `native`, got {text!r}"
        ) from None


def labels(text: str) -> tuple[int, int, int]:
    """(LV, myocardium, RV) from `lv=3,myo=2,rv=1`."""
    try:
        pairs = dict(part.split("=") for part in text.replace(" ", "").lower().split(","))
        if set(pairs) != {"lv", "myo", "rv"}:
            raise ValueError
        return int(pairs["lv"]), int(pairs["myo"]), int(pairs["rv"])
    except ValueError:
        raise argparse.ArgumentTypeError(f"must look like lv=3,myo=2,rv=1, got {text!r}") from None


def fractions(text: str) -> tuple[float, float, float]:
    """Three fractions that sum to 1, the first above 0."""
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be three fractions such as 0.70,0.15,0.15, got {text!r}"
        ) from None
    if train <= 0 or min(val, test) < 0 or abs(train + val + test - 1) > 1e-6:
        raise argparse.ArgumentTypeError(
            f"must be fractions that sum to 1 with some for training, got {text!r}"
        )
    return train, val, test


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Run one command; refusals (ValueError, OSError) are the caller's to show. Returns the exit status."""
    options = Options(
        label_map=args.label_map,
        size=args.size,
        spacing_mm=args.spacing_mm,
        same_level=args.same_level,
        align=args.align,
        intensity=args.intensity,
        min_slices=args.min_slices,
        min_pixels=args.min_pixels,
    )
    try:
        outcomes = run(
            LAYOUTS[args.layout],
            args.raw,
            args.out,
            options,
            split=args.split,
            seed=args.seed,
            workers=args.workers,
        )
    except KeyboardInterrupt:
        log.error(
            "stopped; what is done is kept in %s.partial, and the same command goes on from there", args.out
        )
        return STOPPED
    return SOME_FAILED if any(outcome.kind == FAILURE for outcome in outcomes) else ALL_WELL
