"""Measures on real patients what the structured chapters say of them, and keeps the figures, no image.

    real_slices.py RAW    RAW is open_ms (Lesjak et al. 2018); writes book/runs/lesions-open-ms.json and slices-open-ms.json

The lesion masks of all patients are measured as the phantom's are. The published model, trained on the phantom, meets the patients
who have a FLAIR image; it is then trained on with all but one of them, and asked about the one left out; so is a model that never
saw the phantom.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data_prep import brain_layouts, brain_nifti, phantom
from data_prep.brain import prepare
from data_prep.brain_nifti import Scan
from medvae_lite import brain_metrics, brains, fidelity, hierarchy, runs
from medvae_lite.hierarchy_scores import infer
from medvae_lite.hvae import HVAE
from medvae_lite.train import FitConfig, fit

HERE = Path(__file__).resolve().parent
FINE_TUNING = FitConfig(steps=200, batch_size=16, learning_rate=5e-4, grad_clip=20_000.0, speed="exact")


def mask_statistics(raw: Path) -> dict:
    """Lesion figures of every mask, in 24 slices of 1 mm at pixels of 2 mm, and of as many people of the phantom."""
    options = brain_layouts.Options(slices=24, centre_mm=brain_layouts.MNI_CENTRE_MM)
    stacks = []
    for path in sorted(raw.rglob("GOLD_STANDARD*.nii*")):
        scan = brain_nifti.read(path)
        lesion = scan.voxels > 0
        # The whole field stands in for the brain: masks have no brain of their own.
        stacks.append(brain_nifti.cut(Scan(scan.voxels.astype(np.float32), scan.affine), np.ones_like(lesion), lesion, options).lesion / 100)
    return {"patients": len(stacks), **brain_metrics.lesion_statistics(np.concatenate(stacks), 2.0)}


def figures(model: HVAE, data: brains.Brains, rows: np.ndarray) -> dict[str, float]:
    """Of some real slices: how well they come back, how well lesions are found, which are lost."""
    x, fraction = data.image(rows), data.lesion[torch.from_numpy(rows)][:, 0].numpy()
    image, way = infer(model, x)
    grey = [data.grey(of) for of in (x, image)]
    found = torch.sigmoid(model.lesion_logits(way))[:, 0].detach().numpy() > 0.5
    truth = fraction >= 0.5
    recovery = brain_metrics.contrast_recovery(x[:, 0].numpy(), image[:, 0].numpy(), fraction, data.pixel_mm)
    lost = brain_metrics.missed(recovery)
    return {
        "PSNR (dB)": float(fidelity.psnr(*grey).mean()), "SSIM": float(fidelity.ssim(*grey).mean()),
        "Dice of the lesion head": float(2 * (found & truth).sum() / (found.sum() + truth.sum())),
        "r of lesion area over slices": float(np.corrcoef(found.sum((1, 2)), fraction.sum((1, 2)))[0, 1]) if found.any() else 0.0,
        "lesions missed, up to 3 mm": float(lost.iloc[0]), "lesions missed, all": float((recovery["recovery"] < 0.5).mean()),
    }  # fmt: skip


def transfer(raw: Path) -> dict:
    """The published model on patients it has never seen the like of, then trained on, then a newcomer: one row a patient each."""
    study = hierarchy.Study(
        brains.load(phantom("brain", **hierarchy.PROFILES["laptop"].phantom)), profile="laptop", runs_root=HERE / "runs", progress=False
    )
    with tempfile.TemporaryDirectory() as place:
        folder = prepare(brain_layouts.open_ms(raw), Path(place) / "ms", brain_layouts.Options(slices=24, size=64), few=True)
        data = brains.load(folder)
        people = list(data.people["subject"])
        of = {who: np.flatnonzero(data.slices["subject"] == who) for who in people}
        result: dict = {"patients": people, "as trained on the phantom": [], "trained on with the others": [], "trained on the others alone": []}
        for who in people:
            model, _ = study.train("nvmp", supervised=True)
            result["as trained on the phantom"].append(figures(model, data, of[who]))
            others = torch.from_numpy(np.concatenate([of[one] for one in people if one != who]))
            both = replace(data.split("train"), rows=others)
            torch.manual_seed(0)
            for name, start in (("trained on with the others", model), ("trained on the others alone", HVAE(**model.config))):
                start.cycle = 0
                fit(start, both, both, FINE_TUNING, progress=False)
                result[name].append(figures(start, data, of[who]))
                print(who, name, result[name][-1], flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--masks-only", action="store_true", help="only the lesion masks: seconds instead of minutes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"lesions": mask_statistics} | ({} if args.masks_only else {"slices": transfer})
    for name, measure in parts.items():
        text = json.dumps({"source": "open_ms, Lesjak et al. 2018, CC-BY", **measure(args.raw)}, indent=1, ensure_ascii=False)
        runs.write_atomically(HERE / "runs" / f"{name}-open-ms.json", text + "\n")


if __name__ == "__main__":
    main()
