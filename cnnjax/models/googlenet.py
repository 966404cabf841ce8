"""GoogLeNet.

C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke, A. Rabinovich, "Going deeper with
convolutions", CVPR 2015 (arXiv:1409.4842), Table 1 and Fig. 3.

Departures
- Fig. 3 has local response normalisation after pool1 and before pool2 without constants. They are those of Caffe's
  copy: 5 channels, k 1, α 10⁻⁴ divided by 5, β 0.75.
- The poolings round up, as the sizes in Table 1 ask, and pad nothing. The 7×7 mean at the end is a global one.
- The paper gives no initial weights; these are He's (Caffe's copy has Glorot's, and biases of 0.2).
- Table 1 prints other parameter counts than its own rows have for conv1, 4a, 4c, 4d, 4e, 5a and 5b; the rows are built.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cnnjax.errors import unknown
from cnnjax.models.chain import Aux, Block, Chain, Concat, chain, rows
from cnnjax.models.layers import LRN, AvgPool, Conv, Dense, Dropout, GlobalAvgPool, MaxPool, Norm
from cnnjax.models.surgery import without


class AdaptiveAvgPool(nn.Module):
    """`size` × `size` means as torch takes them, over windows from floor(i · n / size) to ceil((i + 1) · n / size)."""

    size: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for axis in (1, 2):
            n = x.shape[axis]
            edges = [(i * n // self.size, -(-(i + 1) * n // self.size)) for i in range(self.size)]
            parts = [lax.slice_in_dim(x, *edge, axis=axis).mean(axis, keepdims=True) for edge in edges]
            x = jnp.concatenate(parts, axis)
        return x


class Variant(NamedTuple):
    """`five`: the kernel of the "5×5" branch; `pool4`: the window of that pooling; `aux_pool`: the heads' first row."""

    bias: bool
    norm: Norm | None
    five: int
    lrn: bool
    pool4: int
    dropout: float
    aux_pool: nn.Module


# fmt: off
VARIANTS = {
    #                       bias   norm                five  LRN    pool4  dropout  aux_pool
    "paper":        Variant(True,  None,               5,    True,  3,     0.4,     AvgPool(5, stride=3)),
    # The columns of Table 1 count no biases but the classifier's.
    "weights_only": Variant(False, None,               5,    True,  3,     0.4,     AvgPool(5, stride=3)),
    # torchvision's, ported from TF-slim, where a 3×3 stands in the 5×5 branch.
    "torchvision":  Variant(False, Norm(epsilon=1e-3), 3,    False, 2,     0.2,     AdaptiveAvgPool(4)),
}
# fmt: on


def googlenet(variant: str = "paper", *, classes: int = 1000, aux: bool = True) -> Chain:
    """The network of Table 1, images [224, 224, 3]: 6,998,552 parameters, 13,378,280 with the two heads for training.

    The heads hang off 4a and 4d; their losses are to be added with weight 0.3 (section 5). `variant` is a key of
    `VARIANTS`.
    """
    if variant not in VARIANTS:
        raise unknown("variant of GoogLeNet", variant, VARIANTS)
    v = VARIANTS[variant]
    conv = partial(Conv, bias=v.bias, norm=v.norm)
    lrn = LRN(n=5, k=1.0, alpha=1e-4, beta=0.75, alpha_over_n=True)

    def inception(ones: int, reduce3: int, threes: int, reduce5: int, fives: int, proj: int) -> Concat:
        """The columns of Table 1: #1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj."""
        return Concat((
            rows({"1x1": conv(ones, 1)}),
            rows({"3x3_reduce": conv(reduce3, 1), "3x3": conv(threes, 3, pad=1)}),
            rows({"5x5_reduce": conv(reduce5, 1), "5x5": conv(fives, v.five, pad=v.five // 2)}),
            rows(pool=MaxPool(3, stride=1, pad=1), pool_proj=conv(proj, 1)),
        ))  # fmt: skip

    def head(name: str, at: str) -> Aux:
        fc1, fc2 = Dense(1024, dropout=0.7), Dense(classes, act=None)
        return Aux(name, at, Block(rows(pool=v.aux_pool, conv=conv(128, 1), fc1=fc1, fc2=fc2)))

    net = chain(
        conv1=conv(64, 7, stride=2, pad=3),                                                        # 112×112
        pool1=MaxPool(3, stride=2, ceil=True),                                                     # 56×56
        norm1=lrn,
        conv2_reduce=conv(64, 1),
        conv2=conv(192, 3, pad=1),
        norm2=lrn,
        pool2=MaxPool(3, stride=2, ceil=True),                                                     # 28×28
        #                      1×1  3×3 reduce   3×3   5×5 reduce   5×5   pool proj
        inception_3a=inception( 64,         96,  128,          16,   32,         32),              # 256 maps
        inception_3b=inception(128,        128,  192,          32,   96,         64),              # 480
        pool3=MaxPool(3, stride=2, ceil=True),                                                     # 14×14
        inception_4a=inception(192,         96,  208,          16,   48,         64),              # 512
        inception_4b=inception(160,        112,  224,          24,   64,         64),              # 512
        inception_4c=inception(128,        128,  256,          24,   64,         64),              # 512
        inception_4d=inception(112,        144,  288,          32,   64,         64),              # 528
        inception_4e=inception(256,        160,  320,          32,  128,        128),              # 832
        pool4=MaxPool(v.pool4, stride=2, ceil=True),                                               # 7×7
        inception_5a=inception(256,        160,  320,          32,  128,        128),              # 832
        inception_5b=inception(384,        192,  384,          48,  128,        128),              # 1024
        pool5=GlobalAvgPool(),
        drop5=Dropout(v.dropout),
        fc=Dense(classes, act=None),
        aux=(head("aux_4a", "inception_4a"), head("aux_4d", "inception_4d")) if aux else (),
    )  # fmt: skip
    return net if v.lrn else without(net, "norm1", "norm2")
