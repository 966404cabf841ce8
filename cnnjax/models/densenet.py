"""DenseNet, for ImageNet and for CIFAR and SVHN: every layer of a block reads the maps of all layers before it.

G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely connected convolutional networks", CVPR 2017,
arXiv:1608.06993.

Departures
- The authors' code gives the stem of every CIFAR net 2k maps; the text, followed here, has 16 unless the net is a -BC.
- DenseNet-161 (k = 48) is from their repository, not from the paper. DenseNet-264 as tabulated has 265 layers.
"""

import math

import flax.linen as nn

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Block, Chain, Concat, rows
from cnnjax.models.layers import Activation, AvgPool, BatchNorm, Conv, Dense, GlobalAvgPool, MaxPool, Norm

# Table 1: growth rate k and layers in each block. All are -BC: bottlenecks, compression by half.
# fmt: off
TABLE_1: dict[int, tuple[int, tuple[int, ...]]] = {
    121: (32, (6, 12, 24, 16)),
    169: (32, (6, 12, 32, 32)),
    201: (32, (6, 12, 48, 32)),
    264: (32, (6, 12, 64, 48)),
    161: (48, (6, 12, 36, 24)),
}
# Table 2: L, k, bottleneck, compression; the two halves of BC are in Fig. 4 only.
TABLE_2: dict[str, tuple[int, int, bool, float]] = {
    "L40_k12":     ( 40, 12, False, 1.0),
    "L100_k12":    (100, 12, False, 1.0),
    "L100_k24":    (100, 24, False, 1.0),
    "b_L100_k12":  (100, 12, True,  1.0),
    "c_L100_k12":  (100, 12, False, 0.5),
    "bc_L100_k12": (100, 12, True,  0.5),
    "bc_L250_k24": (250, 24, True,  0.5),
    "bc_L190_k40": (190, 40, True,  0.5),
}
# fmt: on

NORM = Norm()


def _layer(growth: int, *, bottleneck: bool, dropout: float, norm: Norm) -> Concat:
    """x beside what it gives in BN-ReLU-1×1(4k)-BN-ReLU-3×3(k), or without bottleneck in BN-ReLU-3×3(k) (section 3)."""
    inner = {"norm1": BatchNorm(norm), "relu1": Activation()}
    if bottleneck:
        inner["conv1"] = Conv(4 * growth, 1, bias=False, act=None, dropout=dropout)
        inner["norm2"], inner["relu2"] = BatchNorm(norm), Activation()
    inner["conv2"] = Conv(growth, 3, pad=1, bias=False, act=None, dropout=dropout)
    return Concat(((), rows(inner)))


def _transition(features: int, *, dropout: float, norm: Norm) -> Block:
    """Half the map size: BN-ReLU-1×1 and a 2×2 mean."""
    return Block(
        rows(
            norm=BatchNorm(norm),
            relu=Activation(),
            conv=Conv(features, 1, bias=False, act=None, dropout=dropout),
            pool=AvgPool(2, stride=2),
        )
    )


def _blocks(
    stem: int, growth: int, counts: tuple[int, ...], *, bottleneck: bool, compression: float, dropout: float, norm: Norm
) -> dict[str, nn.Module]:
    """From dense1_1 to the pool at the end; transitions stand between the blocks."""
    named, channels, last = {}, stem, len(counts)
    for block, count in enumerate(counts, start=1):
        for i in range(1, count + 1):
            named[f"dense{block}_{i}"] = _layer(growth, bottleneck=bottleneck, dropout=dropout, norm=norm)
        channels += count * growth
        if block < last:
            channels = math.floor(channels * compression)
            named[f"trans{block}"] = _transition(channels, dropout=dropout, norm=norm)
    return named | {
        f"norm{last + 1}": BatchNorm(norm),
        f"relu{last + 1}": Activation(),
        f"pool{last + 1}": GlobalAvgPool(),
    }


def densenet(depth: int = 121, classes: int = 1000, *, norm: Norm = NORM) -> Chain:
    """DenseNet-121, 169, 201, 264 (Table 1) or 161, images [224, 224, 3].

    Layers: conv0, pool0, dense1_1, …, trans1, dense2_1, …, norm5, relu5, pool5, fc. Keras has
    `norm=Norm(epsilon=1.001e-5, momentum=0.99)`.

    Raises `CnnjaxError` for a depth that there is not.
    """
    if depth not in TABLE_1:
        raise unknown("depth of a DenseNet", depth, TABLE_1)
    growth, counts = TABLE_1[depth]
    stem = 2 * growth
    return Chain(rows(
        conv0=Conv(stem, 7, stride=2, pad=3, bias=False, norm=norm),  # 112×112
        pool0=MaxPool(3, stride=2, pad=1),                      # 56×56
        **_blocks(stem, growth, counts, bottleneck=True, compression=0.5, dropout=0.0, norm=norm),  # 56, 28, 14, 7
        fc=Dense(classes, act=None),
    ))  # fmt: skip


def densenet_cifar(
    depth: int = 40,
    growth: int = 12,
    classes: int = 10,
    *,
    bottleneck: bool = False,
    compression: float = 1.0,
    dropout: float = 0.0,
    norm: Norm = NORM,
) -> Chain:
    """DenseNet of `depth` layers L and growth rate k for CIFAR and SVHN (section 3, Table 2), images [32, 32, 3].

    `bottleneck` makes it a -B, `compression=0.5` a -C, both a -BC. Without data augmentation the paper has
    `dropout=0.2` after each convolution but the first. Layers: conv0, dense1_1, …, trans1, …, norm4, relu4, pool4, fc.

    Raises `CnnjaxError` for a depth that three equal blocks cannot make, or a compression out of (0, 1].
    """
    convolutions = 2 if bottleneck else 1
    count, rest = divmod(depth - 4, 3 * convolutions)
    if count < 1 or rest:
        raise CnnjaxError(f"a DenseNet of three equal blocks has {3 * convolutions}n + 4 layers, not {depth}")
    if not 0 < compression <= 1:
        raise CnnjaxError(f"compression keeps a share in (0, 1] of the maps, not {compression}")
    stem = 2 * growth if bottleneck and compression < 1 else 16
    blocks = _blocks(
        stem, growth, (count,) * 3, bottleneck=bottleneck, compression=compression, dropout=dropout, norm=norm
    )
    return Chain(rows(conv0=Conv(stem, 3, pad=1, bias=False, act=None), **blocks, fc=Dense(classes, act=None)))
