"""The same figures in JupyterLab, where the kernel decodes."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import build
import nbformat
import numpy as np
import pytest

CELL = """
import json, pathlib, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from _helpers import write_folder
from medvae_lite import datasets, walks, widgets
from medvae_lite.nets import FeatureNet
from medvae_lite.sivae import AttriVAE

torch.manual_seed(0)
folder = write_folder(pathlib.Path("discs"), count=40, size=16)
card = json.loads((folder / "card.json").read_text())
(folder / "card.json").write_text(json.dumps(card | {{"labels": {{"0": "background", "1": "LV", "2": "RV", "3": "MYO"}}}}))
model = AttriVAE(channels=2, size=16, attributes=6, latent_dim=8).eval()
z, volumes = np.random.default_rng(0).standard_normal((60, 8)), np.linspace(50, 250, 60)
walk = widgets.AttributeWalk(
    {{"a model": model}}, datasets.load(folder), codes={{"a model": torch.zeros(3, 8)}}, subjects=list("abc"),
    dials={{"a model": [walks.Dial.fit(4 * z, volumes, k) for k in range(6)]}}, segmenter=FeatureNet(widths=(4, 6), classes=4).eval(),
    ruler=walks.Ruler(np.ones(6), np.zeros(6)),
)
walk
"""
AFTER = """
import json, numpy as np
picture = walk.image(**walk.state)[0]
print("STATE", json.dumps([walk.state["LVEDV"], float(picture.mean()), float(picture.std())]))
"""


@contextlib.contextmanager
def lab(folder):
    """JupyterLab over `folder`: its address, with the token."""
    home = folder / ".jupyter"
    env = os.environ | build.ENVIRONMENT | {
        name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ServerApp.port=0", "--ServerApp.root_dir", folder]
    command += ["--IdentityProvider.token=", "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
        try:
            for _ in range(120):
                running = list((home / "jupyter_runtime_dir").glob("jpserver-*.json"))
                if running:
                    break
                time.sleep(0.5)
            else:
                pytest.fail((folder / "lab.log").read_text()[-2000:])
            yield json.loads(running[0].read_text())["url"].rstrip("/")
        finally:
            server.terminate()
            server.wait(20)


def test_the_kernel_decodes_what_a_slider_asks_for(chromium, tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(CELL.format(tests=str(Path(__file__).parents[1])).strip()), nbformat.v4.new_code_cell(AFTER.strip())]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "live.ipynb")
    with lab(tmp_path) as address:
        context = chromium.new_context(viewport={"width": 1200, "height": 1000})
        tab = context.new_page()
        tab.set_default_timeout(90_000)
        tab.goto(f"{address}/lab/tree/live.ipynb")
        tab.wait_for_selector(".jp-Notebook .jp-CodeCell")
        tab.wait_for_selector("text=/\\| Idle/")  # what is run before the kernel is there is dropped
        cell = tab.locator(".jp-CodeCell").first
        cell.locator(".cm-content").click()
        tab.keyboard.press("Shift+Enter")
        figure = tab.locator(".live")
        tab.wait_for_function("() => document.querySelector('.live')?.dataset.settled")
        assert figure.get_attribute("data-mode") == "kernel" and "kernel" in figure.locator(".live-note").text_content()
        pixels = """() => { const c = document.querySelector(".live canvas");
            return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].filter((_, k) => k % 4 === 0); }"""
        before = np.array(tab.evaluate(pixels)) / 255
        figure.locator("input[type=range]").first.evaluate("e => { e.value = 240; e.dispatchEvent(new Event('input')); }")
        tab.wait_for_function("() => document.querySelector('.live').dataset.settled > 1")
        after = np.array(tab.evaluate(pixels)) / 255
        assert np.abs(after - before).max() > 0.02
        tab.screenshot(path=build.BUILD / "screenshots" / "lab.png")
        # The kernel knows what the reader has set, and draws the same.
        tab.locator(".jp-CodeCell").nth(1).locator(".cm-content").click()
        tab.keyboard.press("Shift+Enter")
        tab.wait_for_selector(".jp-OutputArea-output >> text=STATE")
        text = tab.locator(".jp-OutputArea-output", has_text="STATE").text_content()
        volume, mean, deviation = json.loads(text[text.index("[") :])
        assert volume == 240
        assert mean == pytest.approx(after.mean(), abs=0.01) and deviation == pytest.approx(after.std(), abs=0.01)
        context.close()
