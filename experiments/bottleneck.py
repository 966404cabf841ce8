"""A bottleneck's 1×1 convolutions before and after the 3×3 one, and what they save.

Claim: At the cost of two 3×3 convolutions, a bottleneck works on four times the maps and errs less; against one 3×3
    convolution on all these maps it saves seven eighths of the weights for hardly any error.
Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), Fig. 5 and Table 3
    (ResNet-34 B and ResNet-50), and the lectures: 69,632 against 589,824 weights. "reduced" is the reduction of
    Szegedy et al. 2014, "Going deeper with convolutions" (arXiv:1409.4842): 256 maps of 56×56 to 64.
Command: python -m experiments.bottleneck
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 7 minutes there. paper: 120 epochs of ImageNet a run.
Expected: lab: 2 to 3 % test error, and the wide 3×3 convolution best: digits have no use for a bottleneck.
Departures: Weights, multiply-adds and values are those of a block's convolutions at 56×56, on 64 maps in "basic", on
    256 elsewhere; values are those that the first of them gives. The paper has no ResNet-50 with blocks of one 3×3
    convolution or one reduction. The smoke and lab scales keep two blocks of each of two stages, an eighth of the width
    and a 3×3 first convolution, on digits that are shifted by up to a pixel, with Adam and a cosine schedule. The paper
    scale scores the central crop, not ten.
"""

import dataclasses
import math

from cnnjax.analysis.summary import summarise
from cnnjax.data.augment import RandomCrop
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Chain, Residual, Rows, rows
from cnnjax.models.resnet import resnet
from cnnjax.models.surgery import map_modules, replace, with_width, without
from cnnjax.options import Narrow
from cnnjax.train.recipes import RESNET
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# He et al. 2015, Table 3: top-1 validation error with ten crops, %, of ResNet-34 B and ResNet-50.
PUBLISHED = {"basic": 24.52, "bottleneck": 22.85, "reduced": None, "wide-3x3": None}

CLAIMS = (
    Claim("a bottleneck errs less at equal cost", {"basic": 1, "bottleneck": -1}, above=0),
    Claim("3×3 on all maps is hardly better", {"bottleneck": 1, "wide-3x3": -1}, below=0.5),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """Blocks of a residual network."""

    blocks: int = 2
    """Blocks that are kept of each of the first two stages, at the smoke and lab scales: 1, 2 or 3."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(blocks=1)


LAB = Settings(scale="lab", width=0.125, seeds=5, epochs=16, batch=64, learning_rate=3e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, size=14, blocks=1, width=1 / 16, epochs=0.1),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=480, channels=3, width=1, epochs=120, batch=256,
        learning_rate=0.1, bar=26,
    ),
}  # fmt: skip


def body(name: str, convs: Rows) -> Rows:
    """What is in the place of a bottleneck's 1×1, 3×3 and 1×1 convolutions."""
    first, middle, last = (row.module for row in convs)
    wide = middle.clone(features=last.features, act=None)
    return {
        "bottleneck": convs,
        "reduced": rows(conv1=first, conv2=wide),
        "wide-3x3": rows(conv1=wide.clone(stride=first.stride)),
    }[name]


def network(name: str, classes: int = 1000) -> Chain:
    """ResNet-34, or ResNet-50 with other blocks."""
    if name == "basic":
        return resnet(34, classes)
    net = resnet(50, classes)
    return map_modules(net, lambda m: m.clone(body=body(name, m.body)) if isinstance(m, Residual) else m)


def small(net: Chain, config: Settings) -> Chain:
    """The first blocks of the first two stages, behind a convolution that fits small images."""
    kept = [f"conv{stage}_{i + 1}" for stage in (2, 3) for i in range(config.blocks)]
    gone = [name for name in net.names if "_" in name and name not in kept]
    net = without(replace(net, conv1=net["conv1"].clone(kernel=3, stride=1, pad=1)), *gone)
    return with_width(net, config.width)


def cost(name: str) -> dict[str, int]:
    """Of a block's convolutions at their true size."""
    inside = network(name)["conv2_2"].body  # pyright: ignore[reportAttributeAccessIssue]
    found = summarise(Chain(inside), (56, 56, 64 if name == "basic" else 256))
    weights = sum(row.weights for row in found.rows)
    return {"weights": weights, "MACs": found.macs, "values": math.prod(found.rows[0].output)}


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    recipe = adam_recipe(config, data, RandomCrop(data.train.image.shape[1:3], pad=1))
    if config.scale == "paper":
        recipe = printed_recipe(RESNET, config, data)

    def row(name: str) -> Variant:
        net = network(name, len(data.classes))
        net = with_width(net, config.width) if config.scale == "paper" else small(net, config)
        return Variant(net=net, recipe=recipe, columns=cost(name))

    return {name: row(name) for name in PUBLISHED}


EXPERIMENT = Experiment(
    name="bottleneck",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="top-1 validation error on ImageNet 2012, ResNet-34 B and ResNet-50 (He et al. 2015, Table 3)",
    reference="bottleneck",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
