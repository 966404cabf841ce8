"""Inception-v4, Inception-ResNet-v1 and Inception-ResNet-v2.

C. Szegedy, S. Ioffe, V. Vanhoucke, A. Alemi, "Inception-v4, Inception-ResNet and the impact of residual connections on
learning", AAAI 2017 (arXiv:1602.07261). Modules have the paper's names; what it does not name has those of the authors'
code (TensorFlow's slim), which calls the reductions Mixed_6a and 7a, Inception-A, B, C Mixed_5b…, 6b…, 7b…, and the
residual modules block35, block17, block8, after their map sizes.

A residual block is relu(x + s · up(branches(x))). The 1×1 convolution `up` has a bias, no normalisation and no
activation; s < 1 keeps wide nets from dying early in training (section 3.3).

Departures
- Figures 17 and 19 print widths of 1154 and 2048 for Inception-ResNet-v2; the branches before them add up to 1152 and
  2144, which are built.
- "v2_released" is not the paper's network but the code that all published weights belong to: another stem, twice the
  blocks, a last block without scaling and ReLU, and a 1×1 convolution after it.
- Which of 1×n and n×1 comes first is the released code's choice.
- Section 3.3 scales by 0.1 to 0.3; the default is the released code's 0.17, 0.10, 0.20 also for the paper's nets.
- The code's head for training is in no figure and is not built. The 8×8 mean at the end is a global one.
- The code's running statistics keep 0.9997 of themselves at an update; here 0.9, so that short runs have them too.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain, Residual, chain, rows
from cnnjax.models.inception_v3 import AVG, MAX, Branches, C, figure_5, mixed, reduction_a, stem
from cnnjax.models.layers import Conv, Dense, Dropout, GlobalAvgPool, Norm


class Network(NamedTuple):
    """What the residual nets differ in: numbers of blocks, and filters in the order of the figures."""

    blocks: tuple[int, int, int]
    a: tuple[int, int]
    reduction_a: tuple[int, int, int, int]
    b: tuple[int, int, int, int]
    reduction_b: tuple[int, int]
    c: tuple[int, int, int, int]


# fmt: off
# The second half of the stem of Inception-v4 and Inception-ResNet-v2 (Figure 3), 147×147 -> 73×73 -> 71×71 -> 35×35.
FIGURE_3: dict[str, Branches] = {
    "Mixed_3a": ((MAX,),
                 (C(3, 96, 2),)),
    "Mixed_4a": ((C(1, 64),                                C(3, 96, padding="V")),
                 (C(1, 64), C((1, 7), 64), C((7, 1), 64),  C(3, 96, padding="V"))),
    "Mixed_5a": ((C(3, 192, 2),),
                 (MAX,)),
}
INCEPTION_A: Branches = (                                       # Figure 4, 35×35
    (C(1, 96),),
    (C(1, 64),  C(3, 96)),
    (C(1, 64),  C(3, 96),  C(3, 96)),
    (AVG,       C(1, 96)),
)
INCEPTION_B: Branches = (                                       # Figure 5, 17×17
    (C(1, 384),),
    (C(1, 192),  C((1, 7), 224),  C((7, 1), 256)),
    (C(1, 192),  C((7, 1), 192),  C((1, 7), 224),  C((7, 1), 224),  C((1, 7), 256)),
    (AVG,        C(1, 128)),
)
INCEPTION_C: Branches = (                                       # Figure 6, 8×8
    (C(1, 256),),
    (C(1, 384),                                    (C((1, 3), 256), C((3, 1), 256))),
    (C(1, 384),  C((3, 1), 448),  C((1, 3), 512),  (C((1, 3), 256), C((3, 1), 256))),
    (AVG,        C(1, 256)),
)
REDUCTION_B: Branches = (                                       # Figure 8, 17×17 -> 8×8
    (C(1, 192),                                    C(3, 192, 2)),
    (C(1, 256),  C((1, 7), 256),  C((7, 1), 320),  C(3, 320, 2)),
    (MAX,),
)
# Reduction-A, 35×35 -> 17×17 (Figure 7).
TABLE_1 = {
    #             k    l    m    n
    "v4":        (192, 224, 256, 384),
    "resnet_v1": (192, 192, 256, 384),
    "resnet_v2": (256, 256, 384, 384),
}
V1, V2 = TABLE_1["resnet_v1"], TABLE_1["resnet_v2"]
NETWORKS = {
    #                      blocks        A         Red.-A  B                      Red.-B      C
    #                      A, B, C       3×3 3×3   k l m n 1×1 | 1×1  1×7  7×1    3×3  3×3    1×1 | 1×1  1×3  3×1
    "v1":          Network((5, 10, 5),   (32, 32), V1,     (128, 128, 128, 128),  (256, 256), (192, 192, 192, 192)),
    "v2":          Network((5, 10, 5),   (48, 64), V2,     (192, 128, 160, 192),  (288, 320), (192, 192, 224, 256)),
    "v2_released": Network((10, 20, 10), (48, 64), V2,     (192, 128, 160, 192),  (288, 320), (192, 192, 224, 256)),
}


def resnet_a(i: int, j: int) -> Branches:
    """Figures 10 and 16, 35×35."""
    return (
        (C(1, 32),),
        (C(1, 32),  C(3, 32)),
        (C(1, 32),  C(3, i),  C(3, j)),
    )


def resnet_bc(n: int, ones: int, i: int, j: int, k: int) -> Branches:
    """Figures 11 and 17 (n = 7), 17×17; 13 and 19 (n = 3), 8×8."""
    return (
        (C(1, ones),),
        (C(1, i),  C((1, n), j),  C((n, 1), k)),
    )


def resnet_reduction_b(i: int, j: int) -> Branches:
    """Figures 12 and 18, 17×17 -> 8×8."""
    return (
        (C(1, 256),           C(3, 384, 2)),
        (C(1, 256),           C(3, i, 2)),
        (C(1, 256), C(3, i),  C(3, j, 2)),
        (MAX,),
    )
# fmt: on


def _stem(version: str, conv: partial[Conv]) -> tuple[dict[str, nn.Module], int]:
    """The layers up to 35×35, and the number of maps that they give."""
    layers = dict(stem(conv))
    if version == "v1":  # Figure 14: a convolution in the place of the last pooling
        del layers["MaxPool_5a_3x3"]
        return {**layers, "Conv2d_4b_3x3": conv(256, 3, stride=2)}, 256
    if version == "v2_released":
        return {**layers, "Mixed_5b": mixed(figure_5(96, proj=64), conv)}, 320
    first = {name: layers[name] for name in list(layers)[:3]}
    return {**first, **{name: mixed(branches, conv) for name, branches in FIGURE_3.items()}}, 384


def _repeat(name: str, count: int, module: nn.Module) -> dict[str, nn.Module]:
    return {f"{name}_{i + 1}": module for i in range(count)}


def inception_v4(classes: int = 1000, *, scale: bool = True) -> Chain:
    """Inception-v4 (Figure 9), images [299, 299, 3]: 42,679,816 parameters. `scale=False`: no γ, as slim."""
    conv = partial(Conv, bias=False, norm=Norm(epsilon=1e-3, scale=scale))
    module = partial(mixed, conv=conv)
    return chain(
        {
            **_stem("v4", conv)[0],                                                 # 35×35, 384 maps
            **_repeat("Inception-A", 4, module(INCEPTION_A)),
            "Reduction-A": module(reduction_a(*TABLE_1["v4"])),                     # 17×17, 1024
            **_repeat("Inception-B", 7, module(INCEPTION_B)),
            "Reduction-B": module(REDUCTION_B),                                     # 8×8, 1536
            **_repeat("Inception-C", 3, module(INCEPTION_C)),
        },
        gap=GlobalAvgPool(),
        dropout=Dropout(0.2),
        fc=Dense(classes, act=None),
    )  # fmt: skip


def inception_resnet(
    version: str = "v2",
    classes: int = 1000,
    *,
    residual_scale: tuple[float, float, float] = (0.17, 0.10, 0.20),
    scale: bool = True,
) -> Chain:
    """Inception-ResNet (Figure 15), images [299, 299, 3]; `version` is a key of `NETWORKS`.

    "v1" has 22,756,328 parameters and "v2" 32,433,928; "v2_released", the network that is known as Inception-ResNet-v2,
    has 55,843,464. `residual_scale` is what the branches of the A, B and C modules are multiplied by before they are
    added, 1.0 for no scaling. `scale=False` normalises without γ, as slim and Keras do.

    Raises `CnnjaxError` for a version that there is not.
    """
    if version not in NETWORKS:
        raise unknown("version of Inception-ResNet", version, NETWORKS)
    net = NETWORKS[version]
    conv = partial(Conv, bias=False, norm=Norm(epsilon=1e-3, scale=scale))

    def block(branches: Branches, maps: int, scale: float) -> Residual:
        return Residual(rows(mixed=mixed(branches, conv), up=Conv(maps, 1, act=None)), scale=scale)

    layers, a = _stem(version, conv)
    b = a + net.reduction_a[2] + net.reduction_a[3]  # what a reduction gives: its input, pooled, and its convolutions
    c = b + 384 + sum(net.reduction_b)
    block_a = block(resnet_a(*net.a), a, residual_scale[0])
    block_b = block(resnet_bc(7, *net.b), b, residual_scale[1])
    block_c = block(resnet_bc(3, *net.c), c, residual_scale[2])
    last = {f"Inception-ResNet-C_{net.blocks[2]}": block_c.clone(scale=1.0, act=None), "Conv2d_7b_1x1": conv(1536, 1)}
    return chain(
        {
            **layers,                                                               # 35×35, 256, 384 or 320 maps
            **_repeat("Inception-ResNet-A", net.blocks[0], block_a),
            "Reduction-A": mixed(reduction_a(*net.reduction_a), conv),              # 17×17, 896, 1152 or 1088
            **_repeat("Inception-ResNet-B", net.blocks[1], block_b),
            "Reduction-B": mixed(resnet_reduction_b(*net.reduction_b), conv),       # 8×8, 1792, 2144 or 2080
            **_repeat("Inception-ResNet-C", net.blocks[2], block_c),
            **(last if version == "v2_released" else {}),
        },
        gap=GlobalAvgPool(),
        dropout=Dropout(0.2),
        fc=Dense(classes, act=None),
    )  # fmt: skip
