"""ResNet with full pre-activation: a unit normalises and rectifies before each convolution, and not after the sum.

K. He, X. Zhang, S. Ren, J. Sun, "Identity mappings in deep residual networks", ECCV 2016, arXiv:1603.05027.

Departures
- None known. What the paper leaves to the authors' release is as there: a projection reads the activated input, which
  it shares with the body, and has no normalisation of its own; the stride is on the first 1×1.
"""

import flax.linen as nn

from cnnjax.errors import unknown
from cnnjax.models.chain import Block, Chain, Residual, rows
from cnnjax.models.layers import Activation, BatchNorm, Conv, Dense, GlobalAvgPool, MaxPool, Norm, Pad
from cnnjax.models.resnet import KERAS_NORM, NORM, StrideOn

# How many bottleneck units make conv2_x, conv3_x, conv4_x, conv5_x: Table 1 of arXiv:1512.03385; 200 is this paper's.
# fmt: off
UNITS: dict[int, tuple[int, ...]] = {
    50:  (3,  4,  6, 3),
    101: (3,  4, 23, 3),
    152: (3,  8, 36, 3),
    200: (3, 24, 36, 3),
}
# fmt: on


def _units(depth: int, *, stride_on: StrideOn, keras: bool, norm: Norm) -> dict[str, nn.Module]:
    """The rows conv2_1 … conv5_3. A convolution bears the BN-ReLU that the next one of its unit starts with."""
    if depth not in UNITS:
        raise unknown("depth of a pre-activation ResNet", depth, UNITS)
    if stride_on not in ("1x1", "3x3"):
        raise unknown("place of the stride", stride_on, ["1x1", "3x3"])
    named, before = {}, rows(norm=BatchNorm(norm), relu=Activation())
    for stage, count in enumerate(UNITS[depth]):
        for i in range(count):
            width = 64 << stage
            stride = 2 if (stage < 3 and i == count - 1 if keras else stage and i == 0) else 1
            first, second = (stride, 1) if stride_on == "1x1" else (1, stride)
            body = rows(
                conv1=Conv(width, 1, stride=first, bias=False, norm=norm),
                conv2=Conv(width, 3, stride=second, pad=1, bias=False, norm=norm),
                conv3=Conv(4 * width, 1, bias=keras, act=None),
            )
            if i == 0:
                projection = rows(shortcut=Conv(4 * width, 1, stride=stride, bias=keras, act=None))
                unit = Residual(body, projection, act=None)
                if stage > 0 or keras:  # else conv1 has been normalised and rectified already
                    unit = Block((*before, *rows(unit=unit)))
            else:
                unit = Residual((*before, *body), rows(pool=MaxPool(1, stride=stride)) if stride > 1 else (), act=None)
            named[f"conv{stage + 2}_{i + 1}"] = unit
    return named


def resnet_v2(depth: int = 50, classes: int = 1000, *, stride_on: StrideOn = "1x1", norm: Norm = NORM) -> Chain:
    """Pre-activation ResNet-50, 101, 152 or 200, images [224, 224, 3]; 50 has 25,549,352 parameters.

    Layers: conv1, pool1, conv2_1 … conv5_3, norm5, relu5, pool5, fc. As the paper's appendix says, the first unit
    splits after the activation of conv1, and the last sum is activated once more.

    Raises `CnnjaxError` for a depth or place of the stride that there is not.
    """
    return Chain(rows(
        conv1=Conv(64, 7, stride=2, pad=3, bias=False, norm=norm),  # 112×112
        pool1=MaxPool(3, stride=2, pad=1),                      # 56×56
        **_units(depth, stride_on=stride_on, keras=False, norm=norm),  # 56, 28, 14, 7
        norm5=BatchNorm(norm),
        relu5=Activation(),
        pool5=GlobalAvgPool(),
        fc=Dense(classes, act=None),
    ))  # fmt: skip


def resnet_v2_keras(depth: int = 50, classes: int = 1000) -> Chain:
    """Keras' ResNet50V2, 101 or 152, images [224, 224, 3]; 50 has 25,568,360 trainable parameters.

    It differs: the stride is in the last unit of a stage, on the 3×3, so that conv2_3, conv3_4 and conv4_6 of ResNet-50
    are 28×28, 14×14 and 7×7; conv1, projections and a unit's last convolution have biases; conv1 is not activated
    before its pool, whose padding is zeros that can win.
    """
    return Chain(rows(
        conv1=Conv(64, 7, stride=2, pad=3, act=None),           # 112×112
        pad1=Pad(1, "constant"),
        pool1=MaxPool(3, stride=2),                             # 56×56
        **_units(depth, stride_on="3x3", keras=True, norm=KERAS_NORM),  # 28, 14, 7, 7
        norm5=BatchNorm(KERAS_NORM),
        relu5=Activation(),
        pool5=GlobalAvgPool(),
        fc=Dense(classes, act=None),
    ))  # fmt: skip
