"""Phantoms by name, made on first use and kept in a cache."""

from __future__ import annotations

import os
from pathlib import Path

from data_prep import cardiac_phantom
from data_prep.prepared import identity

# name -> module with `recipe(subjects=, size=, seed=)` and `prepare(out, subjects=, size=, seed=, workers=)`
PHANTOMS = {"cardiac": cardiac_phantom}


def cache_folder() -> Path:
    """Where phantoms are kept: ``$MEDVAE_CACHE``, else ``~/.cache/medvae_lite``."""
    return Path(os.environ.get("MEDVAE_CACHE") or Path.home() / ".cache" / "medvae_lite")


def phantom(name: str, *, subjects: int = 4096, size: int = 64, seed: int = 0, workers: int = 1) -> Path:
    """The prepared folder of a phantom, made on first use.

    Args:
        name: which phantom; a key of `PHANTOMS`.
        subjects: number of subjects.
        size: image side in pixels.
        seed: which cohort.
        workers: processes to make it with.

    Returns:
        A folder in the cache, named after what is in it.

    Raises:
        ValueError: if the name is unknown or an argument is impossible.
    """
    if name not in PHANTOMS:
        raise ValueError(f"`name` must be one of {', '.join(PHANTOMS)}, got {name!r}.")
    module = PHANTOMS[name]
    known = identity(module.recipe(subjects=subjects, size=size, seed=seed))
    out = cache_folder() / f"{name}-{subjects}x{size}px-seed{seed}-{known[:12]}"
    return module.prepare(out, subjects=subjects, size=size, seed=seed, workers=workers)
