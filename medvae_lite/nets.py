"""Encoders, decoders and the feature network: convolutions, and by default nothing that depends on the batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Encoder", "Decoder", "FeatureNet", "FrozenNorm", "default_widths", "norm_layer"]

CODE_CHANNELS = 16


def default_widths(size: int) -> tuple[int, ...]:
    """Channels per level, full resolution first, halving to 16 x 16 pixels (twice, for images below 64 pixels).

    Raises:
        ValueError: If `size` is not 16, 32, 64, 128 or 256.
    """
    if size not in (16, 32, 64, 128, 256):
        raise ValueError(f"`size` must be 16, 32, 64, 128 or 256 pixels, got {size}")
    widths = (8, 12, 16, 32, 48)
    return widths[-max(3, int(math.log2(size / 16)) + 1) :]


class FrozenNorm(nn.Module):
    """Batch norm that never sees a batch: every channel scaled and shifted, nothing normalised.

    The public training code of AR-SIVAE leaves its batch norms in evaluation mode, which makes them this.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return h * self.weight[:, None, None] + self.bias[:, None, None]


def norm_layer(channels: int, norm: str = "group") -> nn.Module:
    """The layer between convolution and activation.

    "group" treats an image alike in training and in evaluation and whatever shares its batch. "batch" does not, and
    soft-introspective training puts real, decoded and sampled images in one batch. "frozen" normalises nothing.

    Raises:
        ValueError: If `norm` is none of these.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "frozen":
        return FrozenNorm(channels)
    if norm != "group":
        raise ValueError(f"`norm` must be one of group, frozen, batch, got {norm!r}")
    # 16 channels a group: with fewer, channels-last backward passes are several times slower.
    return nn.GroupNorm(max(1, channels // 16), channels)


class ConvBlock(nn.Sequential):
    """Convolution, norm, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, norm: str = "group"):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            norm_layer(c_out, norm),
            nn.LeakyReLU(0.2),
        )


class ResBlock(nn.Module):
    """Two convolutions beside an identity, as in the soft-introspective VAE's networks."""

    def __init__(self, channels: int, norm: str = "group"):
        super().__init__()
        self.body = nn.Sequential(
            ConvBlock(channels, channels, norm),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm_layer(channels, norm),
        )

    def forward(self, h: Tensor) -> Tensor:
        return F.leaky_relu(h + self.body(h), 0.2)


class UpBlock(nn.Module):
    """Twice the resolution: fewer channels, bilinear upsampling, a convolution.

    A transposed convolution reaches each output pixel through a different number of weights, nearest-neighbour
    upsampling copies pixels in blocks; a loss that does not punish it, such as a perceptual one, lets either leave
    a periodic pattern behind. Channels are reduced first because the upsampled map costs four times as much.
    """

    def __init__(self, c_in: int, c_out: int, norm: str = "group"):
        super().__init__()
        self.reduce, self.block = nn.Conv2d(c_in, c_out, 1, bias=False), ConvBlock(c_out, c_out, norm)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Tensor:
        return self.block(F.interpolate(self.reduce(h), scale_factor=2, mode="bilinear"))


class Encoder(nn.Module):
    r"""Images to the parameters of :math:`q(z \mid x)`: convolutions down to 16 x 16, then one linear layer.

    Position and size are linear in a map of features, and not in one of their averages. So the linear layer reads a
    16 x 16 map of few channels; with a 4 x 4 map of many, the Attri-VAE needed over three times the steps.

    Arguments:
        channels: Image channels :math:`C` (two: ED and ES).
        size: Image height and width :math:`S` in pixels.
        latent_dim: Latent dimensions :math:`D`.
        widths: Feature channels per level, full resolution first.
        norm: "group", "frozen" or "batch": see `norm_layer`.
    """

    def __init__(
        self, *, channels: int, size: int, latent_dim: int, widths: tuple[int, ...] | None = None, norm: str = "group"
    ):
        super().__init__()
        widths = widths or default_widths(size)
        grid = size >> (len(widths) - 1)
        layers: list[nn.Module] = [ConvBlock(channels, widths[0], norm)]
        for c_in, c_out in zip(widths, widths[1:]):
            layers += [nn.AvgPool2d(2), ConvBlock(c_in, c_out, norm)]
        self.body = nn.Sequential(*layers, ResBlock(widths[-1], norm), nn.Conv2d(widths[-1], CODE_CHANNELS, 1))
        self.head = nn.Linear(CODE_CHANNELS * grid * grid, 2 * latent_dim)

    def forward(self, x: Float[Tensor, "b c s s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Mean and log-variance, each of shape (B, D), of images of shape (B, C, S, S)."""
        h = self.body(x)  # (B, CODE_CHANNELS, 16, 16)
        mu, logvar = self.head(h.flatten(1)).float().chunk(2, dim=1)
        # A log-variance outside [-10, 10] carries no information and overflows exp() in the KL.
        return mu, 10 * torch.tanh(logvar / 10)


class Decoder(nn.Module):
    r"""Latent codes to images: the encoder mirrored.

    Arguments:
        channels, size, latent_dim, widths, norm: As in `Encoder`.
        bounded: Whether a sigmoid keeps grey values in [0, 1]; the public code of AR-SIVAE has none.
    """

    def __init__(
        self, *, channels: int, size: int, latent_dim: int, widths: tuple[int, ...] | None = None,
        norm: str = "group", bounded: bool = True,
    ):  # fmt: skip
        super().__init__()
        widths = widths or default_widths(size)
        self.grid, self.bounded = size >> (len(widths) - 1), bounded
        self.stem = nn.Linear(latent_dim, CODE_CHANNELS * self.grid**2)
        layers: list[nn.Module] = [nn.Conv2d(CODE_CHANNELS, widths[-1], 1), ResBlock(widths[-1], norm)]
        layers += [UpBlock(c_in, c_out, norm) for c_in, c_out in zip(widths[::-1], widths[-2::-1])]
        self.body = nn.Sequential(*layers)
        self.out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b d"]) -> Float[Tensor, "b c s s"]:
        """Decodes codes of shape (B, D) to images of shape (B, C, S, S)."""
        h = F.leaky_relu(self.stem(z), 0.2).unflatten(1, (-1, self.grid, self.grid))
        image = self.out(self.body(h)).float()
        return torch.sigmoid(image) if self.bounded else image


class FeatureNet(nn.Module):
    """A small segmentation network whose layers serve as perceptual features where ImageNet's cannot be had.

    It sees one frame at a time and learns to label it; what it must notice for that (edges, walls, papillary
    muscles) is what its features compare. Features keep the full resolution at the first level and are blurred
    over overlapping windows between levels: a strided network weighs pixels unevenly and prints its grid on the
    decoder.

    Arguments:
        widths: Feature channels per level.
        classes: Number of labels, background included.
        depth: Convolutions per level. One costs half as much, for use in a loss.
    """

    def __init__(self, *, widths: tuple[int, ...] = (8, 16, 32, 48), classes: int = 4, depth: int = 2):
        super().__init__()
        self.config = {"widths": list(widths), "classes": classes, "depth": depth}
        levels = [
            nn.Sequential(ConvBlock(c_in, c_out), *(ConvBlock(c_out, c_out) for _ in range(depth - 1)))
            for c_in, c_out in zip((1, *widths), widths)
        ]
        self.levels = nn.ModuleList(levels)
        self.heads = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in widths)

    def features(self, x: Float[Tensor, "b 1 h w"]) -> list[Tensor]:
        """Feature maps [(B, C_l, H / 2^l, W / 2^l), ...] of single-channel images (B, 1, H, W)."""
        maps = []
        for level in self.levels:
            x = level(F.avg_pool2d(x, 4, stride=2, padding=1, count_include_pad=False) if maps else x)
            maps.append(x)
        return maps

    def forward(self, x: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k h w"]:
        """Label scores (B, classes, H, W), before the softmax."""
        scores = [head(phi) for head, phi in zip(self.heads, self.features(x))]
        size = x.shape[-2:]
        return sum(F.interpolate(s.float(), size=size, mode="bilinear", align_corners=False) for s in scores)
