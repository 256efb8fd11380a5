"""What every live figure shares: its two views, the files beside a page, and the answers of a kernel."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save

from medvae_lite.export import Graph
from medvae_lite.runs import write_atomically

__all__ = ["PROBES", "STATIC", "Live", "data_uri", "script", "style"]

STATIC = "MEDVAE_STATIC"
"""Environment variable: the folder that rendered pages load from. Where it is set, a figure that is shown leaves its files there."""
PROBES = "MEDVAE_PROBES"
"""Environment variable: where a figure that is shown leaves what torch gives for random inputs, to test the pages against."""
HERE = Path(__file__).parent
# Each may use what stands before it; the last makes the two ways in.
PARTS = ("engines", "kit", "hearts", "layers", "people", "dials", "experts", "mount")
LOADER = """(root => {
  const load = () => {
    const up = document.documentElement.dataset.content_root ?? "./";
    window.medvaeScript ??= new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: up + "_static/live/live.js", onload: done, onerror: failed });
      document.head.append(script);
    });
    window.medvaeScript.then(() => window.medvaeLive.mount(root), () => { root.querySelector(".live-note").textContent =
      "The published picture: what makes it move is not beside this page. Run the cell, or open the rendered book."; });
  };
  new IntersectionObserver((seen, observer) => {
    if (seen.some(entry => entry.isIntersecting)) { observer.disconnect(); load(); }
  }).observe(root);
})(document.currentScript.parentElement)"""


@cache
def _parts() -> str:
    return "\n".join((HERE / f"{name}.js").read_text() for name in PARTS)


def script() -> str:
    """The views as one classic script, which also works in a page opened from disk."""
    return f"(() => {{\n{_parts()}\nwindow.medvaeLive = {{ mount, engine: pageEngine }};\n}})();\n"


@cache
def style() -> str:
    """The views' style sheet."""
    return (HERE / "live.css").read_text()


class Live(anywidget.AnyWidget):
    """A figure that moves: with the kernel in JupyterLab, without one in a rendered page.

    Subclasses give the view's name, what it needs to know, and `image`.

    Arguments:
        view: Name of the view in the scripts.
        title: What the figure is, for who cannot see it.
        spec: What the view needs to know: labels, ranges, names. Plain values only.
        graphs: What it may have computed.
        tables: Arrays it looks things up in, float32 or uint8.
        axes: Values of each control that is kept as stored pictures, by the control's name.
        start: Values of all controls as the figure starts.
    """

    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)
    spec = traitlets.Dict().tag(sync=True)
    tables = traitlets.Bytes().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(
        self, view: str, title: str, *, spec: dict, graphs: Sequence[Graph] = (), tables: Mapping[str, NDArray] | None = None,
        axes: Mapping[str, Sequence] | None = None, start: dict,
    ):  # fmt: skip
        self.graphs = {graph.name: graph for graph in graphs}
        self.axes, self.start = {name: list(values) for name, values in (axes or {}).items()}, dict(start)
        super().__init__(
            _esm=f"{_parts()}\nexport default {{ render }};\n", _css=style(),
            spec={"view": view, "title": title, **spec}, tables=save(dict(tables)) if tables else b"", state=dict(start),
        )  # fmt: skip
        self.on_msg(self._answer)

    def image(self, **state) -> NDArray[np.float32]:
        """What the panes show, (P, H, W) in grey values from 0 to 1; controls that are not named stand as they start.

        Raises:
            ValueError: If there is no such control.
        """
        raise NotImplementedError

    def whole(self, state: dict) -> dict:
        """All controls' values, those in `state` and the others' start.

        Raises:
            ValueError: If there is no such control.
        """
        unknown = set(state) - set(self.start)
        if unknown:
            raise ValueError(f"a control must be one of {', '.join(self.start)}, got {min(unknown)!r}")
        return self.start | state

    def _answer(self, _, message: dict, buffers: Sequence) -> None:
        """Computes a graph for the view. What goes wrong is said in the figure, not lost in the kernel's log."""
        try:
            graph = self.graphs[message["graph"]]
            arrays = {name: np.frombuffer(b, np.float32).reshape(graph.inputs[name]) for name, b in zip(message["inputs"], buffers)}
            found = {name: np.ascontiguousarray(value) for name, value in graph(**arrays).items()}
        except Exception as problem:
            self.send({"id": message.get("id"), "error": str(problem)})
        else:
            outputs = [[name, list(value.shape)] for name, value in found.items()]
            self.send({"id": message["id"], "outputs": outputs}, [value.tobytes() for value in found.values()])

    def sheet(self) -> NDArray[np.uint8]:
        """Stored pictures: a row of tiles for each axis, its panes side by side in a tile, and the start alone in a last row."""
        columns = max(map(len, self.axes.values()))
        first = self.tile({})
        height, width = first.shape
        sheet = np.zeros((height * (len(self.axes) + 1), width * columns), np.uint8)
        for row, (name, values) in enumerate(self.axes.items()):
            for column, value in enumerate(values):
                sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = self.tile({name: value})
        sheet[-height:, :width] = first
        return sheet

    def tile(self, state: dict) -> NDArray[np.uint8]:
        """The panes of a state side by side, (H, P W), in 256 greys."""
        panes = np.clip(self.image(**state), 0, 1)
        return np.round(255 * np.concatenate(list(panes), axis=1)).astype(np.uint8)

    @property
    def stored(self) -> str:
        """File name of the stored pictures."""
        told = json.dumps([sorted(graph.file for graph in self.graphs.values()), self.spec, self.axes], sort_keys=True)
        return f"{self.spec['view']}-{hashlib.sha256(told.encode()).hexdigest()[:10]}.webp"

    def write(self, folder: Path) -> None:
        """Leaves what a page loads in `folder`: graphs, and the stored pictures."""
        for graph in self.graphs.values():
            graph.write(folder)
        if self.axes and not (folder / self.stored).exists():
            folder.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            Image.fromarray(self.sheet()).save(buffer, "WEBP", quality=90, method=6)
            write_atomically(folder / self.stored, buffer.getvalue())

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        if os.environ.get(STATIC):
            self.write(Path(os.environ[STATIC]) / "live")
        if os.environ.get(PROBES):
            for graph in self.graphs.values():
                graph.probe(Path(os.environ[PROBES]))
        return {**data, "text/plain": f"{type(self).__name__}()", "text/html": self.page()}, metadata

    def still(self) -> str:
        """The published picture as an <img>: what a reader sees before the view is there, or without scripts."""
        tile, buffer = Image.fromarray(self.tile({})), io.BytesIO()
        tile.save(buffer, "PNG", optimize=True)
        title = html.escape(self.spec["title"])
        return f'<img class="live-still" src="{data_uri("image/png", buffer.getvalue())}" alt="{title}" width="{2 * tile.width}">'

    def page(self) -> str:
        """The figure for a rendered page: the published picture, and what the view needs once it is looked at."""
        known = {
            **self.spec, "tables": data_uri("application/octet-stream", self.tables),
            "graphs": {g.name: {"file": g.file, "inputs": {k: list(v) for k, v in g.inputs.items()}} for g in self.graphs.values()},
        }  # fmt: skip
        if self.axes:
            known["stored"] = {"file": self.stored, "axes": self.axes}
        silent = "<noscript><p>Scripts are off: this is the published picture, and it stands still.</p></noscript>"
        told = json.dumps(known).replace("</", "<\\/")
        return (
            f'<div class="live" data-view="{self.spec["view"]}">{self.still()}{silent}<p class="live-note"></p>'
            f'<script type="application/json">{told}</script><script>{LOADER}</script></div>'
        )


def data_uri(kind: str, data: bytes) -> str:
    """The bytes of a file of that kind, as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
