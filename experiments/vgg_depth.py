"""VGG's columns A to E: what depth, 3×3 kernels and local response normalisation are worth.

Claim: Depth helps, local response normalisation does not, a 3×3 convolution is worth more than a 1×1 one in its place,
    and two 3×3 convolutions are worth more than one of 5×5 that sees as much.
Source: Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition"
    (arXiv:1409.1556), Tables 2 and 3 and section 4.1; B with one 5×5 for each pair of 3×3 errs 7 points more there.
Command: python -m experiments.vgg_depth
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 14 minutes there. paper: 74 epochs of ImageNet a run.
Expected: lab: 3 to 4 % test error in every row: digits need none of the depth, and without normalisation or a trained
    start the deepest column is no better than the first.
Departures: Parameters, multiply-adds and layers with weights are those of the network at its true size, 224×224×3 and
    1,000 classes. All columns start from random weights, Glorot's at the paper scale and He's elsewhere, and the deep
    ones not from a trained A. The smoke and lab scales train a part of the width on digits of 32×32 pixels with Adam
    and a cosine schedule. The paper scale scores the central crop, not the whole image.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Chain
from cnnjax.models.surgery import replace, with_init, with_width, without
from cnnjax.models.vgg import CONFIGURATIONS, vgg
from cnnjax.options import Narrow
from cnnjax.train.protocols import PROTOCOLS
from cnnjax.train.recipes import VGG_A, krizhevsky
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# Simonyan & Zisserman 2014, Table 3, trained and tested at 256: top-1 validation error, %. B-5x5: B's and 7 points.
PUBLISHED = {"A": 29.6, "A-LRN": 29.7, "B": 28.7, "B-5x5": 35.7, "C": 28.1, "D": 27.0, "E": 27.3}

CLAIMS = (
    Claim("normalisation does not help", {"A-LRN": 1, "A": -1}, above=-0.5),
    Claim("19 layers err less than 11", {"A": 1, "E": -1}, above=0),
    Claim("3×3 convolutions are worth more than 1×1", {"C": 1, "D": -1}, above=0),
    Claim("two 3×3 convolutions are worth more than one of 5×5", {"B-5x5": 1, "B": -1}, above=0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """The columns of VGG's table."""

    stages: int = 5
    """Stages of convolutions that are kept: 1 to 5. The first two are the same in B, C, D and E."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(stages=1)


LAB = Settings(scale="lab", seeds=5, size=32, channels=1, width=0.125, epochs=14, batch=64, learning_rate=2e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, size=28, width=1 / 32, stages=2, epochs=0.05),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=256, channels=3, width=1, epochs=74, batch=256,
        learning_rate=0.01, bar=30,
    ),
}  # fmt: skip


def column(name: str, classes: int = 1000) -> Chain:
    """A column of Table 1, or B with one 5×5 convolution in the place of each pair of 3×3."""
    if name != "B-5x5":
        return vgg(name, classes=classes)
    net, stages = vgg("B", classes=classes), range(1, len(CONFIGURATIONS["B"]) + 1)
    wide = {f"conv{stage}_1": net[f"conv{stage}_1"].clone(kernel=5, pad=2) for stage in stages}
    return without(replace(net, **wide), *(f"conv{stage}_2" for stage in stages))


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    recipe, init = adam_recipe(config, data), "he"
    if config.scale == "paper":
        recipe = printed_recipe(VGG_A, config, data, size=256, prepare=krizhevsky, evaluation=PROTOCOLS["centre"])
        init = "glorot"

    def row(name: str) -> Variant:
        whole = summarise(column(name), (224, 224, 3))
        cost = {"layers": whole.depth, "parameters": whole.params, "MACs": whole.macs}
        net = column(name, len(data.classes))
        stages = {layer: int(layer[4]) for layer in net.names if layer[:4] in ("conv", "pool")}
        gone = [layer for layer, stage in stages.items() if stage > config.stages]
        net = with_init(with_width(without(net, *gone), config.width), init)
        return Variant(net=net, recipe=recipe, columns=cost)

    return {name: row(name) for name in PUBLISHED}


EXPERIMENT = Experiment(
    name="vgg_depth",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="top-1 validation error on ImageNet 2012, one scale (Simonyan & Zisserman 2014, Table 3, section 2.3)",
    reference="A",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
