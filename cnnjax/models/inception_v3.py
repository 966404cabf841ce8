"""Inception-v3.

C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception architecture for computer vision",
CVPR 2016 (arXiv:1512.00567). Layer names are those of the authors' released code (TensorFlow's slim).

Departures
- This is the released code, which the published weights and the 5.7 billion multiply-adds belong to, not the paper's
  Table 1: a 1×1 convolution (3b) and a max-pool (5a) where the table has 3×3 convolutions, Mixed_5b to 5d of 256, 288,
  288 maps that keep a 5×5 branch beside that of two 3×3, four modules at 17×17 between two reductions, two at 8×8.
- The 8×8 mean at the end is a global one, and so is what the head for training takes of a map larger than 17×17.
- Names follow the code's rule (see `mixed`); where the code breaks it (Conv_1_0c_5x5 in Mixed_5c), they keep it.
- The code's running statistics keep 0.9997 of themselves at an update; here 0.9, so that short runs have them too. The
  initial weights are He's, normal where the code truncates them; in the head the code has smaller ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import flax.linen as nn

from cnnjax.models.chain import Aux, Block, Chain, Concat, Rows, chain, rows
from cnnjax.models.layers import AvgPool, Conv, Dense, Dropout, GlobalAvgPool, MaxPool, Norm
from cnnjax.models.ops import Pair, pair


class C(NamedTuple):
    """A convolution of the figures. It keeps the map's size, or with "V", and always with stride 2, is not padded."""

    kernel: int | Pair
    features: int
    stride: int = 1
    padding: str = "S"


AVG, MAX = "3×3 mean", "3×3/2 maximum"  # the former keeps the map's size, the latter is not padded
Fork = tuple[C, C]  # two convolutions side by side at the end of a branch; `C` is a tuple, too, and is tested for first
Branches = tuple[tuple[C | str | Fork, ...], ...]


def mixed(branches: Branches, conv: partial[Conv], *, count_padding: bool = False) -> Concat:
    """A module of the figures: its branches Branch_0, Branch_1, … side by side.

    Names inside are the released code's, e.g. Branch_2/Conv2d_0c_3x3: 1 where nothing is padded, else 0; a letter that
    counts; the kernel. The two arms of a fork are in a row "fork".
    """

    def branch(steps: tuple[C | str | Fork, ...]) -> Rows:
        letters = {0: iter("abcdefg"), 1: iter("abcdefg")}

        def named(step: C | str) -> Rows:
            if isinstance(step, C):
                (h, w), valid = pair(step.kernel), step.stride > 1 or step.padding == "V"
                kind = f"Conv2d_{int(valid)}{next(letters[valid])}_{h}x{w}"
                pad = 0 if valid else (h // 2, w // 2)
                return rows({kind: conv(step.features, step.kernel, stride=step.stride, pad=pad)})
            if step == AVG:
                mean = AvgPool(3, stride=1, pad=1, count_padding=count_padding)
                return rows({f"AvgPool_0{next(letters[0])}_3x3": mean})
            return rows({f"MaxPool_1{next(letters[1])}_3x3": MaxPool(3, stride=2)})

        built: list[Rows] = []
        for step in steps:
            if isinstance(step, (C, str)):
                built.append(named(step))
            else:
                built.append(rows(fork=Concat(tuple(named(arm) for arm in step))))
        return tuple(row for part in built for row in part)

    return Concat(tuple(rows({f"Branch_{i}": Block(branch(steps))}) for i, steps in enumerate(branches)))


# fmt: off
def figure_5(ones: int, proj: int) -> Branches:
    """The module at 35×35."""
    return (
        (C(1, ones),),
        (C(1, 48),  C(5, 64)),
        (C(1, 64),  C(3, 96), C(3, 96)),
        (AVG,       C(1, proj)),
    )


def figure_6(n: int) -> Branches:
    """The module at 17×17, with 7×7 convolutions as pairs of 1×7 and 7×1."""
    return (
        (C(1, 192),),
        (C(1, n),  C((1, 7), n),  C((7, 1), 192)),
        (C(1, n),  C((7, 1), n),  C((1, 7), n),  C((7, 1), n),  C((1, 7), 192)),
        (AVG,      C(1, 192)),
    )


# The module at 8×8, whose branches end in both a 1×3 and a 3×1.
FIGURE_7: Branches = (
    (C(1, 320),),
    (C(1, 384),             (C((1, 3), 384), C((3, 1), 384))),
    (C(1, 448), C(3, 384),  (C((1, 3), 384), C((3, 1), 384))),
    (AVG,       C(1, 192)),
)


def reduction_a(k: int, l: int, m: int, n: int) -> Branches:  # noqa: E741
    """35×35 -> 17×17; the letters are those of Szegedy et al. 2016 (arXiv:1602.07261), Figure 7 and Table 1."""
    return (
        (                    C(3, n, 2),),
        (C(1, k),  C(3, l),  C(3, m, 2)),
        (MAX,),
    )


# 17×17 -> 8×8.
REDUCTION_7A: Branches = (
    (C(1, 192),                                   C(3, 320, 2)),
    (C(1, 192), C((1, 7), 192), C((7, 1), 192),   C(3, 192, 2)),
    (MAX,),
)


def stem(conv: partial[Conv]) -> Mapping[str, nn.Module]:
    """The layers before the first module, [299, 299, 3] -> [35, 35, 192]."""
    return {
        "Conv2d_1a_3x3":  conv(32, 3, stride=2),                # 149×149
        "Conv2d_2a_3x3":  conv(32, 3),                          # 147×147
        "Conv2d_2b_3x3":  conv(64, 3, pad=1),
        "MaxPool_3a_3x3": MaxPool(3, stride=2),                 # 73×73
        "Conv2d_3b_1x1":  conv(80, 1),
        "Conv2d_4a_3x3":  conv(192, 3),                         # 71×71
        "MaxPool_5a_3x3": MaxPool(3, stride=2),                 # 35×35
    }
# fmt: on


def inception_v3(classes: int = 1000, *, aux: bool = True, scale: bool = True, count_padding: bool = False) -> Chain:
    """Inception-v3, images [299, 299, 3]: 23,834,568 parameters, 27,161,264 with the head for training.

    The head, AuxLogits, hangs off Mixed_6e, is normalised like the rest (the paper's "BN-auxiliary") and needs images
    of 299 or nearly so; without it 75 will do. `scale=False` normalises without γ, as slim and Keras do.
    `count_padding`: the means count the padding, as torchvision's and timm's do and TensorFlow's do not.
    """
    conv = partial(Conv, bias=False, norm=Norm(epsilon=1e-3, scale=scale))
    module = partial(mixed, conv=conv, count_padding=count_padding)
    head = rows(
        AvgPool_1a_5x5=AvgPool(5, stride=3),                    # 5×5
        Conv2d_1b_1x1=conv(128, 1),
        Conv2d_2a_5x5=conv(768, 5),                             # 1×1
        gap=GlobalAvgPool(),
        fc=Dense(classes, act=None),
    )  # fmt: skip
    return chain(
        stem(conv),
        Mixed_5b=module(figure_5(64, proj=32)),                 # 35×35, 256 maps
        Mixed_5c=module(figure_5(64, proj=64)),                 # 288
        Mixed_5d=module(figure_5(64, proj=64)),                 # 288
        Mixed_6a=module(reduction_a(64, 96, 96, 384)),          # 17×17, 768
        Mixed_6b=module(figure_6(128)),
        Mixed_6c=module(figure_6(160)),
        Mixed_6d=module(figure_6(160)),
        Mixed_6e=module(figure_6(192)),
        Mixed_7a=module(REDUCTION_7A),                          # 8×8, 1280
        Mixed_7b=module(FIGURE_7),                              # 2048
        Mixed_7c=module(FIGURE_7),                              # 2048
        gap=GlobalAvgPool(),
        dropout=Dropout(0.2),
        fc=Dense(classes, act=None),
        aux=(Aux("AuxLogits", "Mixed_6e", Block(head)),) if aux else (),
    )  # fmt: skip
