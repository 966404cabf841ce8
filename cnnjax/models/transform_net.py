"""Image transformation networks: style transfer and super-resolution in one forward pass.

J. Johnson, A. Alahi, L. Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution", ECCV 2016,
arXiv:1603.08155; layers from its supplementary material. The output is an image, [batch, height, width, 3] in [0, 255].

Departures
- Convolutions keep their biases although a normalisation follows, as in the authors' code; `bias=False` drops all.
- The authors' code reaches the pixels by 150 · tanh on images without their mean; here the scaled tanh is the text's,
  to [0, 255].
- The layout of the super-resolution nets has not been checked against the supplementary material.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain, Residual, rows
from cnnjax.models.layers import Conv, ConvTranspose, Norm, Pad

NORM = Norm()


class Crop(nn.Module):
    """`amount` pixels less on each side."""

    amount: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return x[:, self.amount : x.shape[1] - self.amount, self.amount : x.shape[2] - self.amount]


class Pixels(nn.Module):
    """tanh scaled to [0, 255]."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return 127.5 * (jnp.tanh(x) + 1)


def _residual(conv: partial[Conv], features: int, *, pad: int) -> Residual:
    """Two 3×3 convolutions, no ReLU after the sum. Unpadded they lose two pixels a side, and so does the identity."""
    return Residual(
        rows(conv1=conv(features, 3, pad=pad), conv2=conv(features, 3, pad=pad, act=None)),
        rows() if pad else rows(crop=Crop(2)),
        act=None,
    )


def transform_net(*, bias: bool = True, norm: Norm = NORM) -> Chain:
    """The style transfer network (supplementary Table 1), images [256, 256, 3] to images of the same size.

    Any size that is a multiple of 4 and above 40 works. Layers: reflect_pad40, conv1, conv2, conv3, res1 … res5, up1,
    up2, out, pixels.
    """
    conv, up = partial(Conv, bias=bias, norm=norm), partial(ConvTranspose, bias=bias, norm=norm)
    return Chain(rows(
        reflect_pad40=Pad(40),                                  # 336×336
        conv1=conv(32, 9, pad=4),
        conv2=conv(64, 3, stride=2, pad=1),                     # 168×168
        conv3=conv(128, 3, stride=2, pad=1),                    # 84×84
        **{f"res{i}": _residual(conv, 128, pad=0) for i in range(1, 6)},  # 80, 76, 72, 68, 64
        up1=up(64, 3, stride=2, pad=1, extra=1),                # 128×128
        up2=up(32, 3, stride=2, pad=1, extra=1),                # 256×256
        out=Conv(3, 9, pad=4, bias=bias, act=None),
        pixels=Pixels(),
    ))  # fmt: skip


def super_resolution(factor: int = 4, *, bias: bool = True, norm: Norm = NORM) -> Chain:
    """The super-resolution network (supplementary Table 2), images [288 / factor, 288 / factor, 3] to [288, 288, 3].

    The paper has factors 4 and 8; any power of two and any size work. Layers: conv1, res1 … res4, up1 …, out, pixels.

    Raises `CnnjaxError` for another factor.
    """
    if factor < 2 or factor & (factor - 1):
        raise unknown("factor of super-resolution", factor, [2, 4, 8, "other powers of 2"])
    conv, up = partial(Conv, bias=bias, norm=norm), partial(ConvTranspose, bias=bias, norm=norm)
    return Chain(rows(
        conv1=conv(64, 9, pad=4),
        **{f"res{i}": _residual(conv, 64, pad=1) for i in range(1, 5)},
        **{f"up{i}": up(64, 3, stride=2, pad=1, extra=1) for i in range(1, int(math.log2(factor)) + 1)},
        out=Conv(3, 9, pad=4, bias=bias, act=None),
        pixels=Pixels(),
    ))  # fmt: skip
