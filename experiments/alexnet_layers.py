"""What AlexNet's layers are worth: the network as printed, and without layers 3,4 / 7 / 6,7 / 3,4,6,7.

Claim: No single part makes AlexNet good. Without its fully connected layers or without two of its convolutions it loses
    little; without both it collapses: what matters is depth.
Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks" (arXiv:1311.2901), Table 3, on
    AlexNet as printed by Krizhevsky et al. 2012.
Command: python -m experiments.alexnet_layers
Cost: smoke: a minute on 2 CPU cores. lab: 8 minutes there. paper: 90 epochs of ImageNet a run, days on a GPU.
Expected: lab: 3.2, 3.7, 2.9, 3.1 and 3.7 % test error, each give or take half a point: digits do not need all of what
    is removed here, so that few of the paper's differences can be seen; the verdict says which.
Departures: Parameters and multiply-adds are those of the network at its true size, 227×227×3 and 1,000 classes. The
    smoke and lab scales train it with a part of its width on digits of 67×67 pixels, with Adam and a cosine schedule,
    from He's initial weights. The paper scale crops 227×227 and scores the central crop, not ten.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.errors import CnnjaxError
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.alexnet import alexnet
from cnnjax.models.surgery import with_features, with_init, without
from cnnjax.options import Config
from cnnjax.train.recipes import ALEXNET
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# Zeiler & Fergus 2014, Table 3: the layers that are removed, and the top-5 validation error, %
# fmt: off
TABLE = {
    "full":       ((), 18.1),
    "no-3,4":     (("conv3", "conv4"), 22.1),
    "no-7":       (("fc7",), 18.4),
    "no-6,7":     (("fc6", "fc7"), 22.4),
    "no-3,4,6,7": (("conv3", "conv4", "fc6", "fc7"), 50.1),
}
# fmt: on

CLAIMS = (
    Claim("without layers 3 and 4 it is worse", {"no-3,4": 1, "full": -1}, above=0),
    Claim("without layer 7 it is hardly worse", {"no-7": 1, "full": -1}, below=1),
    Claim("without layers 6 and 7 it is worse", {"no-6,7": 1, "full": -1}, above=0),
    Claim(
        "without both pairs it loses more than the two losses together",
        {"no-3,4,6,7": 1, "no-3,4": -1, "no-6,7": -1, "full": 1},
        above=0,
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """AlexNet without some of its layers."""

    width: float = 0.25
    """Width of every layer but the last, relative to the paper's."""

    def __post_init__(self):
        super().__post_init__()
        if not 1 / 16 <= self.width <= 4:
            raise CnnjaxError(f"--width is {self.width}; it must be from 0.0625 to 4")


LAB = Settings(scale="lab", seeds=10, size=67, channels=1, width=0.25, epochs=10, batch=64, learning_rate=1e-3, bar=5)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, width=0.125, epochs=0.25),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=256, channels=3, width=1, epochs=90, batch=128,
        learning_rate=0.01, metric="error5", bar=20,
    ),
}  # fmt: skip


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    paper, net = alexnet(), alexnet(len(data.classes))
    if config.scale == "paper":
        recipe = printed_recipe(ALEXNET, config, data)
    else:
        recipe, net = adam_recipe(config, data), with_init(net, "he")
    layers = [name for name in net.names[:-1] if hasattr(net[name], "features")]
    net = with_features(net, **{name: round(config.width * net[name].features) for name in layers})

    def cost(*removed: str) -> dict[str, int]:
        whole, left = summarise(paper, (227, 227, 3)), summarise(without(paper, *removed), (227, 227, 3))
        return {
            "parameters": left.params,
            "parameters removed": whole.params - left.params,
            "MACs": left.macs,
            "MACs removed": whole.macs - left.macs,
        }

    return {
        name: Variant(net=without(net, *removed), recipe=recipe, columns=cost(*removed))
        for name, (removed, _) in TABLE.items()
    }


EXPERIMENT = Experiment(
    name="alexnet_layers",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={name: error for name, (_, error) in TABLE.items()},
    published_as="top-5 validation error on ImageNet 2012 (Zeiler & Fergus 2014, Table 3)",
    reference="full",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
