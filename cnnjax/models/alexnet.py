"""AlexNet.

A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012.
The two GPUs are two groups: conv2, conv4 and conv5 read only the maps of their own tower, conv3 reads both.

Departures
- The paper's 224×224 crops do not fit an 11×11 kernel with stride 4: the input is 227×227 (`pad=0`), or 224 with
  `pad=2`; both give the 55×55 maps of the paper. (Its first layer has 55·55·96 = 290,400 neurons; the printed 253,440
  is a slip.)
"""

from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import LRN, Conv, Dense, Dropout, MaxPool
from cnnjax.models.surgery import with_init


def alexnet(classes: int = 1000, *, groups: int = 2, pad: int = 0) -> Chain:
    """AlexNet as printed (section 3.5, Fig. 2): 60,965,224 parameters; one tower, `groups=1`, has 62,378,344.

    Images [227, 227, 3], or [224, 224, 3] with `pad=2`. Weights N(0, 0.01); biases 1 in conv2, conv4, conv5 and the
    hidden fully connected layers, else 0 (section 5).
    """
    net = chain(
        conv1=Conv(96, 11, stride=4, pad=pad),                  # 55×55
        norm1=LRN(),
        pool1=MaxPool(3, stride=2),                             # 27×27
        conv2=Conv(256, 5, pad=2, groups=groups, bias_init=1.0),
        norm2=LRN(),
        pool2=MaxPool(3, stride=2),                             # 13×13
        conv3=Conv(384, 3, pad=1),
        conv4=Conv(384, 3, pad=1, groups=groups, bias_init=1.0),
        conv5=Conv(256, 3, pad=1, groups=groups, bias_init=1.0),
        pool5=MaxPool(3, stride=2),                             # 6×6
        fc6=Dense(4096, dropout=0.5, bias_init=1.0),
        fc7=Dense(4096, dropout=0.5, bias_init=1.0),
        fc8=Dense(classes, act=None),
    )  # fmt: skip
    return with_init(net, "normal_0.01")


def alexnet_torchvision(classes: int = 1000) -> Chain:
    """The single tower of "One weird trick" (Krizhevsky 2014) as torchvision has it: no LRN, dropout before fc6 and
    fc7.

    Images [224, 224, 3].
    """
    return chain(
        conv1=Conv(64, 11, stride=4, pad=2),                    # 55×55
        pool1=MaxPool(3, stride=2),                             # 27×27
        conv2=Conv(192, 5, pad=2),
        pool2=MaxPool(3, stride=2),                             # 13×13
        conv3=Conv(384, 3, pad=1),
        conv4=Conv(256, 3, pad=1),
        conv5=Conv(256, 3, pad=1),
        pool5=MaxPool(3, stride=2),                             # 6×6
        drop6=Dropout(0.5),
        fc6=Dense(4096),
        drop7=Dropout(0.5),
        fc7=Dense(4096),
        fc8=Dense(classes, act=None),
    )  # fmt: skip


def alexnet_slim(classes: int = 1000) -> Chain:
    """TF-slim's alexnet_v2: VALID conv1 at 224 (54×54), 384 maps in conv4, fully connected layers as convolutions.

    Images [224, 224, 3]; the logits are [batch, classes].
    """
    return chain(
        conv1=Conv(64, 11, stride=4),                           # 54×54
        pool1=MaxPool(3, stride=2),                             # 26×26
        conv2=Conv(192, 5, pad=2),
        pool2=MaxPool(3, stride=2),                             # 12×12
        conv3=Conv(384, 3, pad=1),
        conv4=Conv(384, 3, pad=1),
        conv5=Conv(256, 3, pad=1),
        pool5=MaxPool(3, stride=2),                             # 5×5
        fc6=Conv(4096, 5, dropout=0.5),
        fc7=Conv(4096, 1, dropout=0.5),
        fc8=Dense(classes, act=None),
    )  # fmt: skip
