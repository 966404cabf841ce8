"""VGG.

K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015
(arXiv:1409.1556).

Departures
- The paper draws the weights of A from N(0, variance 10⁻²) and starts the deeper networks from a trained A. Here all
  are drawn so, and the deeper ones hardly train from it: `with_init(net, "glorot")` is what the note in section 3.1
  found to work without a trained A, `"he"` what is common now.
- Batch normalisation (`norm`) is not the paper's: it is torchvision's, after each convolution, biases kept.
"""

from cnnjax.errors import unknown
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import LRN, Conv, Dense, MaxPool, Norm

MAPS = (64, 128, 256, 512, 512)

# fmt: off
# Table 1: the kernels of the convolutions between one max-pooling and the next. The table's conv1-256 is a 1 under 256.
CONFIGURATIONS = {
    #         64            128      256            512            512
    "A":     ((3,),         (3,),    (3, 3),        (3, 3),        (3, 3)),
    "A-LRN": ((3, "LRN"),   (3,),    (3, 3),        (3, 3),        (3, 3)),
    "B":     ((3, 3),       (3, 3),  (3, 3),        (3, 3),        (3, 3)),
    "C":     ((3, 3),       (3, 3),  (3, 3, 1),     (3, 3, 1),     (3, 3, 1)),
    "D":     ((3, 3),       (3, 3),  (3, 3, 3),     (3, 3, 3),     (3, 3, 3)),
    "E":     ((3, 3),       (3, 3),  (3, 3, 3, 3),  (3, 3, 3, 3),  (3, 3, 3, 3)),
}
# fmt: on


def vgg(configuration: str = "D", *, classes: int = 1000, norm: Norm | None = None) -> Chain:
    """A column of Table 1, images [224, 224, 3]: "D" is VGG-16 with 138,357,544 parameters, "E" VGG-19.

    `norm=Norm()` normalises after each convolution. The LRN of A-LRN has AlexNet's constants (section 2.1).
    """
    if configuration not in CONFIGURATIONS:
        raise unknown("VGG configuration", configuration, CONFIGURATIONS)
    layers = {}
    for stage, (maps, cells) in enumerate(zip(MAPS, CONFIGURATIONS[configuration], strict=True), start=1):
        for i, cell in enumerate(cells, start=1):
            if cell == "LRN":
                layers[f"norm{stage}"] = LRN()
            else:
                layers[f"conv{stage}_{i}"] = Conv(maps, cell, pad=cell // 2, norm=norm, weight_init="normal_0.1")
        layers[f"pool{stage}"] = MaxPool(2, stride=2)  # 112, 56, 28, 14, 7
    return chain(
        layers,
        fc6=Dense(4096, dropout=0.5, weight_init="normal_0.1"),
        fc7=Dense(4096, dropout=0.5, weight_init="normal_0.1"),
        fc8=Dense(classes, act=None, weight_init="normal_0.1"),
    )  # fmt: skip
