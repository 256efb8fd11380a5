"""Commands that make a prepared folder of axial slices from brain images: open_ms, ADNI, or a folder of one's own.

Images must be brain-extracted or have a brain mask beside them; lesion masks must lie on the image's grid. Pictures are
in radiological convention (the person's right is on the left), front on top, slices 1 mm apart. Whoever's files cannot be
used is left out, with the reason in the card.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from data_prep import brain_layouts
from data_prep.brain_layouts import GAP_MM, Cohort, Options, Person
from data_prep.brain_nifti import Slices, brain_of, cut, read, read_mask
from data_prep.brain_phantom import SIZES
from data_prep.brain_prepared import LEAST_PEOPLE, BrainWriter, split_by_subject
from data_prep.cardiac_quality import Unusable
from data_prep.cardiac_run import check_out
from data_prep.large import in_order, let_go, processes
from data_prep.prepared import SPLITS, already_prepared, identity, sha256_file
from data_prep.regions_sheets import one_row_each, read_sheet

log = logging.getLogger(__name__)

__all__ = ["add_commands", "prepare", "read_person", "read_splits", "split_people"]

READER = 2  # to be raised whenever the same files would give other bytes
TISSUES = {"0": "background", "1": "brain"}
_ENOUGH = 16  # people, some six seconds of one core: a process takes one second to start


class _Read(NamedTuple):
    """What is known of a person whose slices wait on disk.

    Args:
        file: `images` (S, H, W) and `labels` (S, 2, H, W), as they will be stored.
        z_mm: height of each slice, (S,).
        brain_px: pixels of brain, (S,).
        lesion_px: pixels of lesion, (S,).
    """

    file: Path
    z_mm: NDArray[np.float64]
    brain_px: NDArray[np.float64]
    lesion_px: NDArray[np.float64]


def prepare(
    cohort: Cohort,
    out: Path,
    options: Options = Options(),
    *,
    seed: int = 0,
    splits: Path | None = None,
    few: bool = False,
    workers: int | None = None,
) -> Path:
    """Reads a cohort and writes the prepared folder.

    Args:
        cohort: as one of the readers of `brain_layouts` gives it.
        out: the folder to make; one that already holds this very dataset is left as it is.
        options: what shapes one person's slices.
        seed: of the split.
        splits: CSV with the columns subject and split, instead of a drawn split.
        few: whether three or four people may be split, in turn: train, val, test.
        workers: processes, as many as there are cores by default, but one for few people; the folder is byte-identical for any
            number.

    Raises:
        ValueError: one sentence: options are impossible, or too few people can be used.
        FileExistsError: something else is at `out`, or it lies inside the raw data.
    """
    out = Path(out)
    if options.centre_mm is None:
        options = options._replace(centre_mm=cohort.centre_mm)
    options.check()
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be a whole number from 0 to 2**64 - 1, got {seed}.")
    workers = processes(workers, len(cohort.people), _ENOUGH)
    check_out(out, cohort.raw)
    given = _given_splits(cohort, splits)
    files = cohort.files | ({} if splits is None else {"splits": Path(splits)})
    recipe = {
        "reader": READER, "cohort": cohort.name, **cohort.options, "slices": options.slices, "slice_gap_mm": GAP_MM,
        "size": options.size, "pixel_mm": options.grid[2], "centre_mm": options.centre_mm, "seed": seed, "few": few,
    }  # fmt: skip
    raw = {name: sha256_file(path) for name, path in files.items()} | _hashes(cohort.people, workers)
    known = identity({"recipe": recipe, "raw": raw})
    if already_prepared(out, known):
        log.info("reusing %s", out)
        return out
    # How many people can be used is known when all are read, and no memory holds a large cohort: they wait on disk.
    beside = next(place for place in out.absolute().parents if place.is_dir())
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=beside) as spool:
        found, excluded = _read_people(cohort, options, Path(spool), workers)
        if not found:
            raise ValueError(
                f"none of the {len(cohort.people)} people under `{cohort.raw}` can be used; the first: "
                f"{excluded[0]['subject']}: {excluded[0]['reason'].rstrip('.')}."
            )
        try:
            split = split_people(list(found), given, seed=seed, few=few)
        except ValueError as error:
            if not excluded:
                raise
            first = f"{excluded[0]['subject']}: {excluded[0]['reason']}"
            raise ValueError(f"{str(error).rstrip('.')} ({len(excluded)} left out, the first {first}).") from None
        people = pd.DataFrame({"subject": list(found), "split": split}, dtype=object)
        if cohort.table is not None:
            extra = cohort.table.loc[people["subject"]].drop(columns=["split"], errors="ignore").reset_index(drop=True)
            people = pd.concat([people, extra], axis=1)
            log.info("the table has %d rows, and %d people are taken", len(cohort.table), len(people))
        unmasked = [person.subject for person in cohort.people if person.subject in found and person.mask is None]
        if 0 < len(unmasked) < len(found):
            log.warning("%d people have no lesion mask and count as without lesions", len(unmasked))
        rows, columns, pixel_mm = options.grid
        tables = [_slices(*item, pixel_mm) for item in zip(found, split, found.values(), strict=True)]
        with BrainWriter(out, images=len(found) * options.slices, size=(rows, columns), identity=known) as writer:
            for index, one in enumerate(found.values()):
                at = slice(index * options.slices, (index + 1) * options.slices)
                with np.load(one.file) as stack:
                    writer.images[at, 0], writer.labels[at] = stack["images"], stack["labels"]
                let_go(writer.images, writer.labels)
            card = {
                "name": cohort.name, "source": cohort.source, "licence": cohort.licence, "citation": cohort.citation,
                "prepared_by": f"data_prep {cohort.name} {READER}", "recipe": recipe, "raw": raw, "sequence": cohort.sequence,
                "pixel_mm": pixel_mm, "slice_gap_mm": GAP_MM, "tissues": TISSUES, "excluded": excluded, "without_mask": unmasked,
            }  # fmt: skip
            return writer.finish(slices=pd.concat(tables, ignore_index=True), subjects=people, card=card)


def read_person(person: Person, options: Options) -> Slices:
    """One person's slices from the files.

    Raises:
        Unusable: one sentence on what is wrong with them.
    """
    scan = read(person.image)
    brain = brain_of(scan, person.image) if person.brain is None else read_mask(person.brain, scan, person.image)
    if brain.all():
        raise Unusable("the brain mask covers the whole image: every voxel is brain; make the mask again")
    lesion = None if person.mask is None else read_mask(person.mask, scan, person.image)
    return cut(scan, brain, lesion, options)


def _read_people(cohort: Cohort, options: Options, spool: Path, workers: int) -> tuple[dict[str, _Read], list[dict[str, str]]]:
    """Reads everyone into files in `spool`; gives what is known by subject, and who is left out."""
    listed = None if cohort.table is None else set(cohort.table.index)
    read = partial(_read_one, listed=listed, options=options, spool=spool)
    found, excluded = {}, []
    with logging_redirect_tqdm(), closing(in_order(read, list(enumerate(cohort.people)), workers)) as results:
        for person, one in zip(tqdm(cohort.people, desc=cohort.name, unit="person", disable=None), results):
            if isinstance(one, _Read):
                found[person.subject] = one
            else:
                log.warning("left out %s: %s", person.subject, one)
                excluded.append({"subject": person.subject, "reason": one})
    return found, excluded


def _read_one(item: tuple[int, Person], *, listed: set[str] | None, options: Options, spool: Path) -> _Read | str:
    """One person's slices into a file, or why there are none."""
    index, person = item
    if person.reason:
        return person.reason
    if listed is not None and person.subject not in listed:
        return "is not in the table; add a row"
    try:
        stack = read_person(person, options)
    except ValueError as error:
        return str(error).rstrip(".")
    except Exception as error:  # one odd file among thousands must not lose the night's work
        log.debug("%s", person.subject, exc_info=True)
        return f"stopped on {type(error).__name__}: an input nobody foresaw; check the files"
    file = spool / f"{index}.npz"
    np.savez(file, images=stack.images.astype(np.float16), labels=np.stack([stack.tissue, stack.lesion], axis=1))
    return _Read(file, stack.z_mm, stack.tissue.sum((1, 2), dtype=float), stack.lesion.sum((1, 2), dtype=float) / 100)


def _hashes(people: Sequence[Person], workers: int) -> dict[str, str]:
    """sha256 of each person's files, "none" where there is no image, "unreadable" where it may not be read."""
    files = {}
    for person in people:
        files[f"{person.subject}/image"] = person.image
        files |= {f"{person.subject}/{name}": path for name in ("mask", "brain") if (path := getattr(person, name))}
    with ThreadPoolExecutor(workers) as pool:  # hashing releases the interpreter's lock
        return dict(zip(files, pool.map(_hash, files.values())))


def _hash(path: Path | None) -> str:
    try:
        return "none" if path is None else sha256_file(path)
    except OSError:
        return "unreadable"


def _slices(subject: str, split: str, one: _Read, pixel_mm: float) -> pd.DataFrame:
    area = pixel_mm**2
    return pd.DataFrame(
        {
            "subject": subject, "split": split, "slice": np.arange(len(one.z_mm)), "z_mm": one.z_mm,
            "brain_mm2": one.brain_px * area, "lesion_mm2": one.lesion_px * area,
        }
    )  # fmt: skip


def _given_splits(cohort: Cohort, splits: Path | None) -> Mapping[str, str] | None:
    within = cohort.table is not None and "split" in cohort.table
    if splits is None:
        return _checked(cohort.table["split"], "the table") if within else None
    if within:
        raise ValueError("the splits must be given once, got a column `split` in the table and --splits; leave one out.")
    return read_splits(splits)


def read_splits(path: Path) -> dict[str, str]:
    """Split by subject from a CSV with the columns subject and split.

    Raises:
        ValueError: a person is in it twice, or a split has another name.
    """
    sheet = read_sheet(Path(path), ["subject", "split"])
    one_row_each(sheet["subject"], f"`{Path(path).name}`")
    return _checked(sheet.set_index("subject")["split"].astype(object).fillna(""), f"`{Path(path).name}`")


def _checked(splits: pd.Series, where: str) -> dict[str, str]:
    strange = splits[~splits.isin(SPLITS)]
    if len(strange):
        raise ValueError(f"{where} must name a split of {', '.join(SPLITS)}, got {strange.iloc[0]!r} for {strange.index[0]!r}.")
    return splits.to_dict()


def split_people(subjects: Sequence[str], given: Mapping[str, str] | None = None, *, seed: int = 0, few: bool = False) -> list[str]:
    """A split for each person: the one given; else drawn; else, with `few` and three or four people, in turn.

    Raises:
        ValueError: too few people, or the given splits lack a person or leave a split empty.
    """
    least = LEAST_PEOPLE if given is None and not few else len(SPLITS)
    if len(subjects) < least:
        mend = "" if least < LEAST_PEOPLE else "; for three or four, name the splits with --splits or take --few"
        raise ValueError(f"a split by person needs at least {least} people whose files can be used, got {len(subjects)}{mend}.")
    if given is not None:
        lost = [subject for subject in subjects if subject not in given]
        if lost:
            raise ValueError(f"the splits must name everyone, and {lost[0]!r} is missing; add a row.")
        split = [given[subject] for subject in subjects]
        empty = [name for name in SPLITS if name not in split]
        if empty:
            raise ValueError(f"the splits must leave someone in {', '.join(SPLITS)}, and {empty[0]} is empty; move someone there.")
        return split
    return list(islice(cycle(SPLITS), len(subjects))) if len(subjects) < LEAST_PEOPLE else split_by_subject(len(subjects), seed)


def add_commands(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-commands `open-ms`, `brain-folder` and `adni-mri`."""
    for name, text, raw, read_cohort in (
        ("open-ms", "slices of open_ms, FLAIR or T1 with lesions", "folder open_ms, cross_sectional or MNI", _open_ms),
        ("brain-folder", "slices of brain images of one's own", "folder with <subject>/image.nii.gz or <subject>_image.nii.gz", _own),
        ("adni-mri", "slices of ADNI's T1 images", "folder with <subject>/<series>/<date>/<image id>/*.nii", _adni),
    ):
        parser = subparsers.add_parser(name, help=text, description=f"Prepare {text}: several axial slices a person.")
        add = parser.add_argument
        add("raw", metavar="RAW", type=Path, help=f"{raw}; only read")
        add("out", metavar="OUT", type=Path, help="prepared folder to make")
        add("--brain", metavar="NAME", default="brain", help="brain mask beside an image, without .nii.gz (default: %(default)s)")
        if name == "open-ms":
            add("--sequence", choices=brain_layouts.SEQUENCES, default="FLAIR", help="which image (default: %(default)s)")
        if name == "brain-folder":
            add("--image", metavar="NAME", default="image", help="name of the image (default: %(default)s)")
            add("--mask", metavar="NAME", default="mask", help="name of the lesion mask (default: %(default)s)")
            add("--sequence", metavar="TEXT", default=brain_layouts.OWN, help="what the images show, such as FLAIR")
        if name != "open-ms":
            what = "subject, split if known, and more" if name == "brain-folder" else "exported with the image collection"
            add("--table", metavar="CSV", type=Path, required=name == "adni-mri", help=what)
        centre = f"{brain_layouts.MNI_CENTRE_MM:g}" if name == "open-ms" else "the middle of each brain"
        add("--slices", metavar="N", type=int, default=24, help="slices a person, 1 mm apart (default: %(default)s)")
        add("--centre-mm", metavar="MM", type=float, help=f"height of the middle slice above the origin (default: {centre})")
        add("--size", type=int, choices=tuple(SIZES), default=112, help="rows of pixels (default: %(default)s)")
        add("--pixel-mm", metavar="MM", type=float, help="edge of a pixel (default: 2 for 112 rows, 2.75 for 64, 5.5 for 32)")
        add("--seed", metavar="N", type=int, default=0, help="of the split (default: %(default)s)")
        add("--splits", metavar="CSV", type=Path, help="subject,split instead of a drawn split")
        add("--few", action="store_true", help="allow three or four people, in train, val and test in turn")
        add("--workers", metavar="N", type=int, help="processes; the result does not depend on it (default: all cores)")
        parser.set_defaults(func=_command, read_cohort=read_cohort)


def _open_ms(args: argparse.Namespace) -> Cohort:
    return brain_layouts.open_ms(args.raw, sequence=args.sequence, brain=args.brain)


def _own(args: argparse.Namespace) -> Cohort:
    return brain_layouts.folder(
        args.raw, image=args.image, mask=args.mask, brain=args.brain, table=args.table, sequence=args.sequence
    )


def _adni(args: argparse.Namespace) -> Cohort:
    return brain_layouts.adni_mri(args.raw, args.table, brain=args.brain)


def _command(args: argparse.Namespace) -> int:
    options = Options(args.slices, args.size, args.pixel_mm, args.centre_mm)
    prepare(args.read_cohort(args), args.out, options, seed=args.seed, splits=args.splits, few=args.few, workers=args.workers)
    return 0
