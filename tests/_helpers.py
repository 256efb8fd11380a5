"""A tiny prepared folder, written by hand, for tests of the package that must not depend on `data_prep`."""

import hashlib
import json

import numpy as np
import pandas as pd

ATTRIBUTES = ("LVEDV", "RVEDV", "MYOEDV", "LVESV", "RVESV", "MYOESV")


def discs(count, size, rng):
    """Bright discs: images (N, 2, S, S) in [0, 1], labels, and six attributes (N, 6) that grow with the radii."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    radius = rng.uniform(0.15, 0.4, (count, 2, 1, 1)) * size
    labels = (np.hypot(rows, columns) < radius).astype(np.uint8)
    images = 0.1 + 0.7 * labels + 0.02 * rng.standard_normal(labels.shape)
    areas = labels.sum((2, 3)).astype(float)
    attributes = np.column_stack([areas[:, [frame]] * (1, 2, 3) + rng.uniform(0, 1, (count, 3)) for frame in (0, 1)])
    return np.clip(images, 0, 1).astype(np.float16), labels, attributes


def write_folder(root, *, count=20, size=16, seed=0, mend=lambda subjects: subjects):
    """Writes a prepared folder; `mend` may alter the table of subjects before it is written."""
    images, labels, attributes = discs(count, size, np.random.default_rng(seed))
    splits = np.array(["train"] * 14 + ["val"] * 3 + ["test"] * 3)[np.arange(count) % 20]
    subjects = pd.DataFrame({"subject": [f"{i:03d}" for i in range(count)], "split": splits})
    subjects[[f"{name}_ml" for name in ATTRIBUTES]] = attributes
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / "images.npy", images)
    np.save(root / "labels.npy", labels)
    mend(subjects).to_csv(root / "subjects.csv", index=False)
    files = {f: hashlib.sha256((root / f).read_bytes()).hexdigest() for f in ("images.npy", "labels.npy", "subjects.csv")}
    card = {
        "name": "discs", "kind": "cardiac", "format": 1, "identity": f"discs-{seed}", "frames": ["ED", "ES"],
        "attributes": list(ATTRIBUTES), "attribute_units": "mL", "pixel_mm": 2.5, "size": size, "files": files,
    }  # fmt: skip
    (root / "card.json").write_text(json.dumps(card))
    return root
