r"""Networks as ONNX files, for pages that decode without a kernel.

A `Graph` is a network with named float32 inputs of fixed shapes. The kernel calls it; a rendered page runs the file of the same name
in onnxruntime-web. Weights are stored in half precision and widened when the page loads them: half the bytes, float32 arithmetic.
"""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor, nn

from medvae_lite.runs import write_atomically

__all__ = ["Graph", "LayeredDecoder", "Labeller", "normal", "uniform"]

FORMAT = 1
"""Raised when a file of the same weights would no longer be the same graph."""
SMALL = 64
"""Values up to which a constant is not worth storing in half precision (shapes, scales, biases of the last layer)."""


@dataclass(frozen=True)
class Graph:
    """A network with named inputs and outputs.

    Arguments:
        name: What a figure calls it.
        module: Takes the inputs in their order, gives one tensor or a tuple of them; float32 all.
        inputs: Shape of every input.
        outputs: Names of the outputs.
        example: Draws inputs as a reader may set them, by name; standard normal where it is None.
        source: What tables inside the module were computed from. It names the file in their place: another machine's last digits differ.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Sequence[int]]
    outputs: Sequence[str]
    example: Callable[[np.random.Generator], dict[str, NDArray]] | None = None
    source: bytes = b""

    @property
    def file(self) -> str:
        """File name: the same weights, shapes and format give the same one on every machine."""
        digest = hashlib.sha256(f"{FORMAT} {type(self.module).__name__} {[(k, list(v)) for k, v in self.inputs.items()]}".encode())
        for key, weight in sorted(self.module.named_parameters()):
            digest.update(key.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        digest.update(self.source)
        return f"{type(self.module).__name__.lower()}-{digest.hexdigest()[:10]}.onnx"

    @torch.no_grad()
    def __call__(self, **arrays: NDArray) -> dict[str, NDArray[np.float32]]:
        """The outputs by name, computed by torch.

        Raises:
            ValueError: If an input is missing, unknown or of another shape.
        """
        shapes = {name: tuple(np.shape(value)) for name, value in arrays.items()}
        wanted = {name: tuple(shape) for name, shape in self.inputs.items()}
        if shapes != wanted:
            raise ValueError(f"`{self.name}` needs inputs of the shapes {wanted}, got {shapes}")
        device = next(self.module.parameters()).device
        found = self.module(*(torch.tensor(np.asarray(arrays[name], np.float32), device=device) for name in self.inputs))
        found = (found,) if isinstance(found, Tensor) else found
        return {name: value.float().cpu().numpy() for name, value in zip(self.outputs, found, strict=True)}

    def onnx(self, *, half: bool = True) -> bytes:
        """The ONNX model, opset 20.

        Arguments:
            half: Whether weights are stored in float16.
        """
        import onnx  # takes a second, and only those who write pages need it

        example = tuple(torch.zeros(*shape) for shape in self.inputs.values())
        buffer = io.BytesIO()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                copy.deepcopy(self.module).cpu().eval(), example, dynamo=True, opset_version=20, verbose=False,
                input_names=list(self.inputs), output_names=list(self.outputs),
            )  # fmt: skip
            program.save(buffer)
        model = onnx.load_from_string(buffer.getvalue())
        if half:
            _halve(model)
        for node in model.graph.node:  # where in the code each node came from
            del node.metadata_props[:]
            node.doc_string = ""
        del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model.SerializeToString(deterministic=True)

    def write(self, folder: Path) -> Path:
        """Writes the file into `folder`, unless it is there; returns its path."""
        path = folder / self.file
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.onnx())  # two chapters may show the same network at the same time
        return path

    def draw(self, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        """Random inputs, by name."""
        drawn = self.example(rng) if self.example else {name: rng.standard_normal(shape) for name, shape in self.inputs.items()}
        return {name: np.asarray(value, np.float32) for name, value in drawn.items()}

    def probe(self, folder: Path, *, count: int = 4, seed: int = 0) -> Path:
        """Writes what torch gives for `count` random inputs, "in.NAME" and "out.NAME" of a safetensors file; returns its path."""
        rng = np.random.default_rng(seed)
        given = [self.draw(rng) for _ in range(count)]
        found = [self(**one) for one in given]
        arrays = {f"in.{name}": np.stack([one[name] for one in given]) for name in self.inputs}
        arrays |= {f"out.{name}": np.stack([one[name] for one in found]) for name in self.outputs}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.file}.safetensors"
        write_atomically(path, save(arrays))
        return path


def _halve(model) -> None:
    """Stores, in place, every large float32 constant that float16 can hold as float16 with a cast behind it."""
    import onnx

    casts = []
    for constant in model.graph.initializer:
        values = onnx.numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.size > SMALL and np.abs(values).max() <= np.finfo(np.float16).max:
            name = constant.name
            constant.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


class Labeller(nn.Module):
    """Images (1, C, S, S) to the label of every pixel (1, C, S, S), as float32, by a network that labels one frame at a time."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.transpose(0, 1)).argmax(1)[None].float()


class LayeredDecoder(nn.Module):
    r"""A hierarchy's way down, every layer chosen from outside: :math:`z_l = \mu_l + s_l (k_l - \mu_l)`, or :math:`s_l k_l`.

    What is kept, :math:`k_l`, is a blend of stored people's values or a draw: "relative" layers keep how far a person lay from what
    was expected, the others the value itself (see `medvae_lite.edits`).

    Arguments:
        model: The hierarchy.
        values: Latent variables of P people, all layers side by side, (P, D).
        residuals: The same in standard deviations from what was expected, (P, D).
        top: Means and standard deviations of the prior's components at layer 0, each (K, D_0).
    """

    def __init__(self, model: nn.Module, values: Tensor, residuals: Tensor, top: tuple[Tensor, Tensor]):
        super().__init__()
        self.model = model
        for name, tensor in {"values": values, "residuals": residuals, "top_mu": top[0], "top_sd": top[1]}.items():
            self.register_buffer(name, tensor.detach().half().float())  # as the file will hold them

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what `forward` takes."""
        layers, people, everything = len(self.model.dims), *self.values.shape
        return {
            "who": (layers, people), "noise": (1, everything), "drawn": (layers,), "factor": (layers,), "relative": (1,),
            "component": (1, len(self.top_mu)),
        }  # fmt: skip

    def example(self, rng: np.random.Generator) -> dict[str, NDArray]:
        """Random choices for `forward`: one person, or a draw, for every layer."""
        layers, people, components = len(self.model.dims), len(self.values), len(self.top_mu)
        return {
            "who": np.eye(people)[rng.integers(people, size=layers)], "noise": rng.standard_normal((1, self.values.shape[1])),
            "drawn": rng.integers(2, size=layers), "factor": rng.uniform(-1, 3, layers), "relative": rng.integers(2, size=1),
            "component": np.eye(components)[rng.integers(components, size=1)],
        }  # fmt: skip

    def forward(self, who: Tensor, noise: Tensor, drawn: Tensor, factor: Tensor, relative: Tensor, component: Tensor) -> Tensor:
        """The image (1, 1, H, W).

        Arguments:
            who: Weight of every person in every layer, (L + 1, P); rows add up to 1.
            noise: Standard normal, (1, D).
            drawn: 1 where a layer is drawn from its prior, 0 where it is kept, (L + 1,).
            factor: :math:`s_l`, (L + 1,).
            relative: 1 to keep residuals, 0 to keep values, (1,).
            component: Which component of the top prior a draw comes from, one-hot, (1, K).
        """
        values, residuals = (t.split(self.model.dims, 1) for t in (self.values, self.residuals))
        noises = noise.split(self.model.dims, 1)

        def choose(layer, p, q):
            own = who[layer : layer + 1]
            kept = relative * (p.mu + p.std * (own @ residuals[layer])) + (1 - relative) * (own @ values[layer])
            mu, sd = (component @ self.top_mu, component @ self.top_sd) if layer == 0 else (p.mu, p.std)
            chosen = drawn[layer] * (mu + sd * noises[layer]) + (1 - drawn[layer]) * kept
            moves = torch.clamp(relative + drawn[layer], max=1) * p.mu
            return moves + factor[layer] * (chosen - moves)

        return self.model.descend(1, choose)[0]


def uniform(seed: int, count: int) -> NDArray[np.float64]:
    """Numbers between 0 and 1, (count,), that a page draws alike: a 32-bit hash of seed and place. A longer row begins as a shorter one does."""
    with np.errstate(over="ignore"):
        place = np.arange(count, dtype=np.uint32)
        h = (place + np.uint32(1)) * np.uint32(0x9E3779B9) ^ (np.uint32(seed) + np.uint32(1)) * np.uint32(0x85EBCA6B)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    return (h.astype(np.float64) + 0.5) / 2**32


def normal(seed: int, count: int) -> NDArray[np.float32]:
    """Standard normal numbers, (count,), that a page draws alike: `uniform` numbers in pairs, by Box and Muller."""
    u, v = uniform(seed, 2 * ((count + 1) // 2)).reshape(-1, 2).T
    radius = np.sqrt(-2 * np.log(u))
    pairs = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], 1)
    return pairs.reshape(-1)[:count].astype(np.float32)
