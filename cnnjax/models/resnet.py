"""ResNet and the plain nets beside it, for ImageNet and for CIFAR-10.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, arXiv:1512.03385.

A block is y = relu(shortcut(x) + body(x)), where the body is conv-BN-ReLU-…-conv-BN. A plain net is the same without
the shortcuts; it has the layers, names and parameters of the option A net, so that weights of one fit the other.

Departures
- None known. The paper does not say that the projections of options B and C are normalised; every implementation, the
  authors' included, does so. The last γ of a block starts at 1; starting it at 0 is a later idea (Goyal et al. 2017).
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Block, Chain, Residual, Rows, rows
from cnnjax.models.layers import Activation, Conv, Dense, GlobalAvgPool, MaxPool, Norm

# Table 1: the kind of block, and how many of them make conv2_x, conv3_x, conv4_x, conv5_x.
# fmt: off
TABLE_1: dict[int, tuple[str, tuple[int, ...]]] = {
    18:  ("basic",      (2, 2,  2, 2)),
    34:  ("basic",      (3, 4,  6, 3)),
    50:  ("bottleneck", (3, 4,  6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
# fmt: on

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # Table 6

# The shortcuts of section 4.1. A: identity, with maps of zeros where the width grows. B: a projection where the shape
# changes, else identity. C: a projection in every block. None: no shortcuts, a plain net.
Shortcut = Literal["A", "B", "C"] | None
# Which convolution of a bottleneck has the stride: the first, as in the paper ("v1"), or the 3×3 ("v1.5", torchvision).
StrideOn = Literal["1x1", "3x3"]

NORM = Norm()
KERAS_NORM = Norm(epsilon=1.001e-5, momentum=0.99)


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and maps of zeros behind the others up to `features`. No parameters."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, max(0, self.features - x.shape[-1]))))


def _body(kind: str, width: int, stride: int, stride_on: StrideOn, conv: partial[Conv]) -> Rows:
    """The convolutions of a block: two of 3×3 (Fig. 5 left), or 1×1, 3×3 and 1×1 to four times the width (right)."""
    if kind == "basic":
        return rows(conv1=conv(width, 3, stride=stride, pad=1), conv2=conv(width, 3, pad=1, act=None))
    first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
    return rows(
        conv1=conv(width, 1, stride=first),
        conv2=conv(width, 3, stride=second, pad=1),
        conv3=conv(4 * width, 1, act=None),
    )


def _blocks(
    kind: str, counts: tuple[int, ...], width: int, *, shortcut: Shortcut, stride_on: StrideOn, conv: partial[Conv]
) -> dict[str, nn.Module]:
    """The rows conv2_1, conv2_2, …, conv3_1, …: a stage has twice the width of the last and half its map size."""
    if shortcut not in ("A", "B", "C", None):
        raise unknown("shortcut", shortcut, ["A", "B", "C", None])
    if stride_on not in ("1x1", "3x3"):
        raise unknown("place of the stride", stride_on, ["1x1", "3x3"])
    named, channels = {}, width
    for stage, count in enumerate(counts):
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            body = _body(kind, width << stage, stride, stride_on, conv)
            features = (1 if kind == "basic" else 4) * width << stage
            changes = stride > 1 or features != channels
            if shortcut is None:
                block = Block((*body, *rows(relu=Activation())))
            elif shortcut == "C" or (shortcut == "B" and changes):
                block = Residual(body, rows(shortcut=conv(features, 1, stride=stride, act=None)))
            elif changes:
                block = Residual(body, rows(shortcut=PadShortcut(features, stride)))
            else:
                block = Residual(body)
            named[f"conv{stage + 2}_{i + 1}"], channels = block, features
    return named


def resnet(
    depth: int = 50,
    classes: int = 1000,
    *,
    shortcut: Shortcut = "B",
    stride_on: StrideOn = "1x1",
    conv_bias: bool = False,
    norm: Norm = NORM,
) -> Chain:
    """ResNet-18, 34, 50, 101 or 152 (Table 1), images [224, 224, 3].

    The default is the paper's: strides on 1×1 ("v1"), option B. torchvision and timm have `stride_on="3x3"` (no change
    at 18 and 34), Keras has `conv_bias=True, norm=KERAS_NORM`. Layers: conv1, pool1, conv2_1 … conv5_3, pool5, fc;
    inside a block conv1, conv2, conv3 and shortcut.

    Raises `CnnjaxError` for a depth, shortcut or place of the stride that there is not.
    """
    if depth not in TABLE_1:
        raise unknown("depth of a ResNet", depth, TABLE_1)
    kind, counts = TABLE_1[depth]
    conv = partial(Conv, bias=conv_bias, norm=norm)
    return Chain(rows(
        conv1=conv(64, 7, stride=2, pad=3),                     # 112×112
        pool1=MaxPool(3, stride=2, pad=1),                      # 56×56
        **_blocks(kind, counts, 64, shortcut=shortcut, stride_on=stride_on, conv=conv),  # 56, 28, 14, 7
        pool5=GlobalAvgPool(),
        fc=Dense(classes, act=None),
    ))  # fmt: skip


def plain(depth: int = 34, classes: int = 1000, *, norm: Norm = NORM) -> Chain:
    """The plain net of a depth (Table 1, Fig. 3 middle): a ResNet without its shortcuts. Images [224, 224, 3]."""
    return resnet(depth, classes, shortcut=None, norm=norm)


def cifar_resnet(depth: int = 20, classes: int = 10, *, shortcut: Shortcut = "A", norm: Norm = NORM) -> Chain:
    """ResNet of 6n + 2 layers for CIFAR (section 4.2): 16, 32, 64 maps at 32×32, 16×16, 8×8. Images [32, 32, 3].

    The paper's are `CIFAR_DEPTHS`. Layers: conv1, conv2_1 … conv4_n, pool4, fc.

    Raises `CnnjaxError` for a depth that is not 6n + 2.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise CnnjaxError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, 26, 32, …), not {depth}")
    conv = partial(Conv, bias=False, norm=norm)
    return Chain(rows(
        conv1=conv(16, 3, pad=1),                               # 32×32
        **_blocks("basic", (n, n, n), 16, shortcut=shortcut, stride_on="1x1", conv=conv),  # 32, 16, 8
        pool4=GlobalAvgPool(),
        fc=Dense(classes, act=None),
    ))  # fmt: skip


def cifar_plain(depth: int = 20, classes: int = 10, *, norm: Norm = NORM) -> Chain:
    """The plain net of 6n + 2 layers for CIFAR (section 4.2). Images [32, 32, 3]."""
    return cifar_resnet(depth, classes, shortcut=None, norm=norm)
