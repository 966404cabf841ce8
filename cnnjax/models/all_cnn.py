"""All-CNN: pooling is not needed.

J. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for simplicity: the all convolutional net", ICLR 2015
workshop (arXiv:1412.6806). Three base models with max-pooling, and for each the same without it.

Departures
- The paper gives no padding. Here every map keeps its size (a strided layer halves it, the pooling rounds up), but for
  the first convolution of stage 3: that one is not padded, and gives the 6×6 maps that Table 1 averages.
- The paper gives no initial weights; these are He's. Its parameter counts (Table 3) are rounded, and for base model C
  wrong: the layers of Table 1 come to 954,730, not 1.3 million.
"""

import flax.linen as nn

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import Conv, Dropout, GlobalAvgPool, MaxPool

# fmt: off
# Table 1: the kernels of the convolutions before each pooling.
BASE = {
    #      96 maps   192 maps
    "A": ((5,),     (5,)),
    "B": ((5, 1),   (5, 1)),
    "C": ((3, 3),   (3, 3)),
}

# Table 2, for C; A and B likewise: what ends each of these two stages. "Base-CNN" is the "Model" of Table 3.
VARIANTS = {
    #                one more 3×3   stride of the last convolution   max-pooling
    "Base-CNN":     (False,         1,                               True),
    "Strided-CNN":  (False,         2,                               False),
    "ConvPool-CNN": (True,          1,                               True),
    "All-CNN":      (True,          2,                               False),
}
# fmt: on


def all_cnn(base: str = "C", variant: str = "All-CNN", *, classes: int = 10) -> Chain:
    """A network of Tables 1 and 2, images [32, 32, 3]: All-CNN-C has 1,369,738 parameters for ten classes.

    `base` is a key of `BASE`, `variant` of `VARIANTS`. A layer has the same name in every variant that has it. Dropout
    is 20 % on the input and 50 % after each pooling or what replaces it (section 3.1).
    """
    if base not in BASE:
        raise unknown("base model", base, BASE)
    if variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    more, stride, pool = VARIANTS[variant]
    layers: dict[str, nn.Module] = {"drop0": Dropout(0.2)}
    for stage, (maps, kernels) in enumerate(zip((96, 192), BASE[base], strict=True), start=1):
        kernels = (*kernels, 3) if more else kernels
        for i, kernel in enumerate(kernels, start=1):
            last = i == len(kernels)
            layers[f"conv{stage}_{i}"] = Conv(maps, kernel, stride=stride if last else 1, pad=kernel // 2)
        if pool:
            layers[f"pool{stage}"] = MaxPool(3, stride=2, ceil=True)
        layers[f"drop{stage}"] = Dropout(0.5)
    return chain(
        layers,
        conv3_1=Conv(192, 3),                                   # 6×6
        conv3_2=Conv(192, 1),
        conv3_3=Conv(classes, 1),
        pool3=GlobalAvgPool(),
    )  # fmt: skip
