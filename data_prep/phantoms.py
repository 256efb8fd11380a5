"""Phantoms by name, made on first use and kept in a cache."""

from __future__ import annotations

import os
from pathlib import Path

from data_prep import brain_phantom, cardiac_phantom, regions_phantom
from data_prep.prepared import identity

# name -> module with `recipe(**options)` and `prepare(out, **options)`, and the options a folder's name tells
PHANTOMS = {
    "cardiac": (cardiac_phantom, "{subjects}x{size}px-seed{seed}"),
    "regions": (regions_phantom, "{subjects}-seed{seed}"),
    "brain": (brain_phantom, "{disease}-{subjects}x{slices}x{size}px-seed{seed}"),
}
_DEFAULTS = {
    "cardiac": {"subjects": 4096, "size": 64, "seed": 0},
    "regions": {"subjects": 9875, "seed": 0},
    "brain": {"subjects": 300, "disease": "ms", "size": 64, "slices": 8, "seed": 0},
}


def cache_folder() -> Path:
    """Where phantoms are kept: ``$MEDVAE_CACHE``, else ``~/.cache/medvae_lite``."""
    return Path(os.environ.get("MEDVAE_CACHE") or Path.home() / ".cache" / "medvae_lite")


def phantom(name: str, **options: int | str | None) -> Path:
    """The prepared folder of a phantom, made on first use.

    Args:
        name: which phantom; a key of `PHANTOMS`.
        options: what its module's `prepare` takes: `subjects` and `seed` of every phantom, `size` in pixels of images,
            `disease` and `slices` of brains, `workers` of both: processes, as many as pay by default.

    Returns:
        A folder in the cache, named after what is in it.

    Raises:
        ValueError: if the name or an option is unknown or impossible.
    """
    if name not in PHANTOMS:
        raise ValueError(f"`name` must be one of {', '.join(PHANTOMS)}, got {name!r}.")
    (module, label), known = PHANTOMS[name], _DEFAULTS[name]
    workers = {"workers": options.pop("workers")} if name != "regions" and "workers" in options else {}
    unknown = set(options) - set(known)
    if unknown:
        raise ValueError(f"options of the {name} phantom are {', '.join(known)}, got `{min(unknown)}`.")
    options = known | options
    out = cache_folder() / f"{name}-{label.format(**options)}-{identity(module.recipe(**options))[:12]}"
    return module.prepare(out, **options, **workers)
