"""Speed of live figures in the page: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_page.py [--quick] [--out FILE]``.

Headless Chromium, one thread, files from localhost. A walk through an untrained decoder of each size (what it draws does not change
its speed): time from the first sight to the first picture with nothing cached, pictures a second while a slider is dragged without
pause, and one decoding in the page against one by torch, which take turns. Then what every page of the rendered book loads before
and after its figures come into view; `make book` first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests"), str(ROOT / "tests" / "book"), str(ROOT / "book")]

import browser as chromium  # noqa: E402
import build  # noqa: E402
import measure  # noqa: E402
from _helpers import write_folder  # noqa: E402

from medvae_lite import datasets, walks, widgets  # noqa: E402
from medvae_lite.cardiac import FEATURE_NETS  # noqa: E402
from medvae_lite.nets import FeatureNet  # noqa: E402
from medvae_lite.sivae import AttriVAE  # noqa: E402
from medvae_lite.widgets import live  # noqa: E402

LATENT = {64: 64, 128: 128}
"""Latent dimensions of the models of each image size, those of the laptop and of the paper profile."""
DRAG = """async seconds => {
    const figure = document.querySelector(".live"), slider = figure.querySelector("input[type=range]");
    const first = +figure.dataset.drawn, start = performance.now();
    for (let k = 0; performance.now() - start < 1000 * seconds; k++) {
        slider.value = +slider.min + (k % 100) / 100 * (slider.max - slider.min);
        slider.dispatchEvent(new Event("input"));
        await new Promise(requestAnimationFrame);
    }
    return (figure.dataset.drawn - first) / (performance.now() - start) * 1000; }"""
DECODE = """async ([file, dims]) => {
    const engine = medvaeLive.engine({ it: { file, inputs: { z: [1, dims] } } }), z = new Float32Array(dims).map(Math.random);
    const start = performance.now();
    await engine.run("it", { z });
    return performance.now() - start; }"""


def walk(size: int, folder: Path) -> widgets.AttributeWalk:
    """A walk through an untrained model, with the segmentation network of the chapters."""
    torch.manual_seed(0)
    prepared = write_folder(folder, count=20, size=size)
    card = json.loads((prepared / "card.json").read_text())
    (prepared / "card.json").write_text(json.dumps(card | {"labels": {"0": "background", "1": "LV", "2": "RV", "3": "MYO"}}))
    model = AttriVAE(channels=2, size=size, attributes=6, latent_dim=LATENT[size]).eval()
    codes, volumes = torch.randn(60, LATENT[size]), np.linspace(50, 250, 60)
    return widgets.AttributeWalk(
        {"walk": model}, datasets.load(prepared), codes={"walk": codes[:3]}, subjects=list("abc"),
        dials={"walk": [walks.Dial.fit(codes.numpy(), volumes, k) for k in range(6)]},
        segmenter=FeatureNet(**FEATURE_NETS["metric"][0]).eval(), ruler=walks.Ruler(np.ones(6), np.zeros(6)),
    )  # fmt: skip


def site(figure: live.Live, folder: Path) -> Path:
    """A page with one figure below the window's end."""
    static = folder / "_static"
    figure.write(static / "live")
    (static / "live" / "live.js").write_text(live.script())
    (static / "vendor").symlink_to(ROOT / "book" / "_static" / "vendor")
    page = f"<!doctype html><html data-content_root='./'><meta charset=utf-8><style>{live.style()}</style><div style='height:3000px'></div>"
    (folder / "index.html").write_text(page + figure.page())
    return folder


def opened(browser: Browser, url: str) -> Page:
    """The page in a profile of its own: nothing is cached."""
    tab = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    tab.set_default_timeout(60_000)
    tab.goto(url, wait_until="load")
    return tab


def first_picture(browser: Browser, url: str) -> float:
    """Seconds from the first sight of the figure to its first picture."""
    tab = opened(browser, url)
    start = time.perf_counter()
    tab.evaluate("document.querySelector('.live').scrollIntoView()")
    tab.wait_for_function("document.querySelector('.live').dataset.drawn", polling="raf")
    took = time.perf_counter() - start
    tab.context.close()
    return took


def moving(browser: Browser, size: int, turns: int) -> dict:
    """One size's figures."""
    with tempfile.TemporaryDirectory() as scratch:
        figure = walk(size, Path(scratch, "data"))
        root = Path(scratch, "site")
        root.mkdir()
        with chromium.serve(site(figure, root)) as base:
            firsts = [first_picture(browser, base) for _ in range(turns)]
            tab = opened(browser, base)
            tab.evaluate("document.querySelector('.live').scrollIntoView()")
            tab.wait_for_function("document.querySelector('.live').dataset.settled")
            frames = [tab.evaluate(DRAG, 2) for _ in range(turns)]
            decoder, z = figure.graphs["decoder0"], torch.randn(1, LATENT[size])
            page, kernel = [], []
            for _ in range(5 * turns):
                page.append(tab.evaluate(DECODE, [decoder.file, LATENT[size]]))
                with torch.no_grad():
                    start = time.perf_counter()
                    decoder.module(z)
                    kernel.append(1e3 * (time.perf_counter() - start))
            tab.context.close()
        ratios = sorted(p / k for p, k in zip(page, kernel))
        return {
            "size": size, "parameters": sum(p.numel() for p in decoder.module.parameters()),
            "file, kB": (root / "_static" / "live" / decoder.file).stat().st_size / 1e3,
            "first picture, s": [statistics.median(firsts), min(firsts), max(firsts)],
            "pictures per s": [statistics.median(frames), min(frames), max(frames)],
            "decoding, ms": statistics.median(page), "by torch, ms": statistics.median(kernel),
            "times torch": [statistics.median(ratios), ratios[0], ratios[-1]],
        }  # fmt: skip


def loads(browser: Browser, base: str, page: str) -> dict:
    """Megabytes that a page loads before and after its figures come into view."""
    tab, sizes = opened(browser, "about:blank"), []
    tab.on("response", lambda r: sizes.append(len(r.body())) if r.status == 200 else None)
    tab.set_viewport_size({"width": 1280, "height": 300})
    tab.goto(f"{base}/{page}", wait_until="networkidle")
    before, figures = sum(sizes), tab.locator(".live")
    for nth in range(figures.count()):
        figures.nth(nth).scroll_into_view_if_needed()
        tab.wait_for_function("k => document.querySelectorAll('.live')[k].dataset.settled", arg=nth)
    tab.wait_for_load_state("networkidle")
    found = {"page": page.removesuffix(".html"), "figures": figures.count(), "before, MB": before / 1e6, "after, MB": sum(sizes) / 1e6}
    tab.context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="one turn of everything")
    args = parser.parse_args()
    torch.set_num_threads(1)
    turns, html = (1 if args.quick else 5), build.BUILD / "html"
    result: dict = {"machine": measure.machine("cpu")}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.executable(), args=chromium.FLAGS)
        result["machine"]["browser"] = f"Chromium {browser.version}"
        result["moving"] = [moving(browser, size, turns) for size in LATENT]
        live_pages = [f"{page}.html" for page in build.pages() if 'class="live"' in (html / f"{page}.html").read_text()]
        with chromium.serve(html) as base:
            result["pages"] = [loads(browser, base, page) for page in live_pages]
        browser.close()
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
