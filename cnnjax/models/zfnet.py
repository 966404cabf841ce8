"""ZFNet.

M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014 (arXiv:1311.2901v3), Fig. 3.
AlexNet in one tower, with a smaller first kernel and stride, chosen by looking at what the first layers had learned.

Departures
- The contrast normalisation across maps is AlexNet's local response normalisation with its constants; the paper gives
  none.
"""

from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import LRN, Conv, Dense, MaxPool
from cnnjax.models.surgery import with_features, with_init


def zfnet(classes: int = 1000) -> Chain:
    """The network of Fig. 3, images [224, 224, 3]: 62,357,608 parameters. The first two pools round up, as printed."""
    net = chain(
        conv1=Conv(96, 7, stride=2, pad=1),                     # 110×110
        pool1=MaxPool(3, stride=2, ceil=True),                  # 55×55
        norm1=LRN(),
        conv2=Conv(256, 5, stride=2),                           # 26×26
        pool2=MaxPool(3, stride=2, ceil=True),                  # 13×13
        norm2=LRN(),
        conv3=Conv(384, 3, pad=1),
        conv4=Conv(384, 3, pad=1),
        conv5=Conv(256, 3, pad=1),
        pool5=MaxPool(3, stride=2),                             # 6×6
        fc6=Dense(4096, dropout=0.5),
        fc7=Dense(4096, dropout=0.5),
        fc8=Dense(classes, act=None),
    )  # fmt: skip
    return with_init(net, "normal_0.01")


# Table 3, lower half: "adjust layers" as widths of the layers that differ.
# fmt: off
ADJUSTED = {
    "zfnet_fc2048": {"fc6": 2048, "fc7": 2048},
    "zfnet_fc8192": {"fc6": 8192, "fc7": 8192},
    "zfnet_wide":   {"conv3": 512, "conv4": 1024, "conv5": 512},
    "zfnet_both":   {"conv3": 512, "conv4": 1024, "conv5": 512, "fc6": 8192, "fc7": 8192},
}
# fmt: on


def zfnet_adjusted(row: str, classes: int = 1000) -> Chain:
    """A row of Table 3 with other widths; `row` is a key of `ADJUSTED`."""
    return with_features(zfnet(classes), **ADJUSTED[row])
