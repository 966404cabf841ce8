"""Network in Network.

M. Lin, Q. Chen, S. Yan, "Network in network", ICLR 2014 (arXiv:1312.4400). An mlpconv layer is a convolution and two
1×1 convolutions ("cascaded cross channel parametric pooling", cccp), each rectified; the last one gives a map for each
class, and the map's mean is the class's score.

Departures
- The paper prints no widths. The CIFAR ones are those of the released definition for Caffe, and so is the mean that the
  second pooling takes. The paper's initial weights are set by hand; these are He's.
- The paper has no ImageNet network. That one is the Caffe model zoo's, by the first author.
"""

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import AvgPool, Conv, Dropout, GlobalAvgPool, MaxPool

CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


def nin(data: str = "cifar10", *, classes: int | None = None) -> Chain:
    """The network for `data`, a key of `CLASSES`: images [32, 32, 3], or [224, 224, 3] for ImageNet.

    966,986 parameters for CIFAR-10, 984,356 for CIFAR-100, 7,595,176 for ImageNet. Poolings round up, as Caffe's.
    """
    if data not in CLASSES:
        raise unknown("NiN", data, CLASSES)
    classes = CLASSES[data] if classes is None else classes
    if data == "imagenet":
        return chain(
            conv1=Conv(96, 11, stride=4),                       # 54×54
            cccp1=Conv(96, 1),
            cccp2=Conv(96, 1),
            pool1=MaxPool(3, stride=2, ceil=True),              # 27×27
            conv2=Conv(256, 5, pad=2),
            cccp3=Conv(256, 1),
            cccp4=Conv(256, 1),
            pool2=MaxPool(3, stride=2, ceil=True),              # 13×13
            conv3=Conv(384, 3, pad=1),
            cccp5=Conv(384, 1),
            cccp6=Conv(384, 1),
            pool3=MaxPool(3, stride=2, ceil=True),              # 6×6
            drop3=Dropout(0.5),
            conv4=Conv(1024, 3, pad=1),
            cccp7=Conv(1024, 1),
            cccp8=Conv(classes, 1),
            pool4=GlobalAvgPool(),
        )  # fmt: skip
    return chain(
        conv1=Conv(192, 5, pad=2),                              # 32×32
        cccp1=Conv(160, 1),
        cccp2=Conv(96, 1),
        pool1=MaxPool(3, stride=2, ceil=True),                  # 16×16
        drop1=Dropout(0.5),
        conv2=Conv(192, 5, pad=2),
        cccp3=Conv(192, 1),
        cccp4=Conv(192, 1),
        pool2=AvgPool(3, stride=2, ceil=True),                  # 8×8
        drop2=Dropout(0.5),
        conv3=Conv(192, 3, pad=1),
        cccp5=Conv(192, 1),
        cccp6=Conv(classes, 1),
        pool3=GlobalAvgPool(),
    )  # fmt: skip
