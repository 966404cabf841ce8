"""Inception-BN, and what TensorFlow's model zoo (slim) calls Inception v2.

S. Ioffe, C. Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
ICML 2015 (arXiv:1502.03167), Figure 5 and appendix. Against GoogLeNet, two 3×3 stand for each 5×5, there are three
modules at 28×28, some pool by the mean, and 3c and 4e halve the map themselves. No dropout, no LRN (section 4.2.1).

Departures
- Figure 5 contradicts itself: with the printed projections of 128, 4c and 4d give 608 maps and 4e 1056, but 576, 576
  and 1024 are printed. The default has projections of 96 there, as every port has; `table_literal=True` has those
  printed. For 3c and 4e it prints the map sizes before their stride.
- The appendix has a separable first convolution with depth multiplier 8. Only `inception_v2` has it; ports have a full
  one.
- The paper says 13.6 million parameters; the rows of Figure 5 come to 11.3 million.
- ε, padding and initial weights are not given: 10⁻³, sizes that halve exactly, He's. Slim's running statistics keep
  0.9997 of themselves at an update; here 0.9, so that short runs have them too. The 7×7 mean at the end is global.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn

from cnnjax.models.chain import Block, Chain, Concat, chain, rows
from cnnjax.models.layers import AvgPool, Conv, Dense, Dropout, GlobalAvgPool, MaxPool, Norm
from cnnjax.models.ops import Padding


class Module(NamedTuple):
    """A row of Figure 5. The modules of stride 2 have no 1×1 branch and no projection: what they pool passes on."""

    ones: int
    reduce3: int
    threes: int
    reduce33: int
    double3: int
    pool: str
    proj: int
    stride: int = 1


# fmt: off
FIGURE_5 = {
    #                      #1×1   #3×3  #3×3   double #3×3  double   pool  proj  stride
    #                            reduce           reduce     #3×3
    "inception_3a": Module(  64,    64,   64,         64,      96,  "avg",   32),
    "inception_3b": Module(  64,    64,   96,         64,      96,  "avg",   64),
    "inception_3c": Module(   0,   128,  160,         64,      96,  "max",    0,   2),
    "inception_4a": Module( 224,    64,   96,         96,     128,  "avg",  128),
    "inception_4b": Module( 192,    96,  128,         96,     128,  "avg",  128),
    "inception_4c": Module( 160,   128,  160,        128,     160,  "avg",   96),  # printed: 128
    "inception_4d": Module(  96,   128,  192,        160,     192,  "avg",   96),  # printed: 128
    "inception_4e": Module(   0,   128,  192,        192,     256,  "max",    0,   2),
    "inception_5a": Module( 352,   192,  320,        160,     224,  "avg",  128),
    "inception_5b": Module( 352,   192,  320,        192,     224,  "max",  128),
}
# fmt: on


def _module(row: Module, conv: partial[Conv], *, pad: Padding, count_padding: bool) -> Concat:
    """`pad` is that of the strided convolutions; the others and the poolings keep or halve the map's size exactly."""
    s, pads = row.stride, 1 if row.stride == 1 else pad
    double = {"double3x3_1": conv(row.double3, 3, pad=1), "double3x3_2": conv(row.double3, 3, stride=s, pad=pads)}
    mean = AvgPool(3, stride=s, pad="SAME", count_padding=count_padding)
    pool = rows(pool=mean if row.pool == "avg" else MaxPool(3, stride=s, pad="SAME"))
    branches = (
        rows({"1x1": conv(row.ones, 1)}) if row.ones else None,
        rows({"3x3_reduce": conv(row.reduce3, 1), "3x3": conv(row.threes, 3, stride=s, pad=pads)}),
        rows({"double3x3_reduce": conv(row.reduce33, 1), **double}),
        (*pool, *rows(pool_proj=conv(row.proj, 1))) if row.proj else pool,
    )
    return Concat(tuple(branch for branch in branches if branch is not None))


def _network(conv1: nn.Module, modules: dict[str, Concat], conv: partial[Conv], dropout: dict, classes: int) -> Chain:
    return chain(
        conv1=conv1,                                            # 112×112
        pool1=MaxPool(3, stride=2, pad="SAME"),                 # 56×56
        conv2_reduce=conv(64, 1),
        conv2=conv(192, 3, pad=1),
        pool2=MaxPool(3, stride=2, pad="SAME"),                 # 28×28
        **modules,                                              # 28×28, from 3c on 14×14, from 4e on 7×7
        gap=GlobalAvgPool(),
        **dropout,
        linear=Dense(classes, act=None),
    )  # fmt: skip


def inception_bn(classes: int = 1000, *, table_literal: bool = False, conv_bias: bool = False) -> Chain:
    """The network of Figure 5, images [224, 224, 3]: 11,194,984 parameters.

    `table_literal`: the printed projections of 4c and 4d, 11,285,224 parameters. `conv_bias`: convolutions have biases
    beside the β of their normalisation, as in Caffe's copies. Means count the padding, as in these copies.
    """
    conv = partial(Conv, bias=conv_bias, norm=Norm(epsilon=1e-3))
    printed = {name: FIGURE_5[name]._replace(proj=128) for name in ("inception_4c", "inception_4d")}
    table = {**FIGURE_5, **printed} if table_literal else FIGURE_5
    modules = {name: _module(row, conv, pad=1, count_padding=True) for name, row in table.items()}
    return _network(conv(64, 7, stride=2, pad=3), modules, conv, {}, classes)


def inception_v2(classes: int = 1000) -> Chain:
    """Inception v2 of TensorFlow's slim, images [224, 224, 3]: 11,178,336 parameters, without γ.

    Its first convolution is separable, with a bias and without normalisation; all padding is TensorFlow's, means leave
    it out, and there is dropout before the classifier. Slim's weights have 1001 classes; class 0 is the background.
    Slim's names are one letter on: inception_3a is its Mixed_3b, 3c its 4a, 4e its 5a, 5b its 5c.
    """
    conv = partial(Conv, bias=False, norm=Norm(epsilon=1e-3, scale=False))
    depthwise = Conv(3 * 8, 7, stride=2, pad="SAME", groups=3, bias=False, act=None)
    separable = Block(rows(depthwise=depthwise, pointwise=Conv(64, 1)))
    modules = {name: _module(row, conv, pad="SAME", count_padding=False) for name, row in FIGURE_5.items()}
    return _network(separable, modules, conv, {"dropout": Dropout(0.2)}, classes)
