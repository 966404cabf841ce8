"""What AlexNet's layers are worth: the network as printed, and without layers 3,4 / 7 / 6,7 / 3,4,6,7.

Claim: No single part makes AlexNet good. Without its fully connected layers or without two of its convolutions it loses
    little; without both it collapses: what matters is depth.
Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks" (arXiv:1311.2901), Table 3, on
    AlexNet as printed by Krizhevsky et al. 2012.
Command: python -m experiments.alexnet_layers
Cost: smoke: under a minute on 2 CPU cores. lab: 5 minutes there. paper: 90 epochs of ImageNet a run, days on a GPU.
Expected: lab: about 3 % test error in every row. Digits do not need what is removed here, so that most of the paper's
    differences are not to be seen; the verdict says which are.
Departures: Parameters and multiply-adds are those of the network at its true size, 227×227×3 and 1,000 classes. The
    smoke and lab scales train it with a part of its width on digits of 67×67 pixels, with Adam and a cosine schedule,
    from He's initial weights. The paper scale crops 227×227, and neither shifts colours nor averages over ten crops.
"""

import dataclasses

import optax

from cnnjax.analysis.summary import summarise
from cnnjax.data.augment import CropAndFlip
from cnnjax.data.splits import Dataset, standardise
from cnnjax.experiment import Experiment, Recipe, Variant, main
from cnnjax.models.alexnet import alexnet
from cnnjax.models.surgery import with_features, with_init, without
from cnnjax.options import Config
from cnnjax.train import optim
from cnnjax.train.losses import cross_entropy
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


LAB = Settings(scale="lab", seeds=3, size=67, channels=1, width=0.25, epochs=10, batch=64, learning_rate=1e-3, bar=5)
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
    if config.width != 1:
        weighted = [name for name in net.names[:-1] if hasattr(net[name], "features")]
        net = with_features(net, **{name: round(config.width * net[name].features) for name in weighted})
    recipe = Recipe(
        optimizer=lambda steps: optax.adam(optim.cosine(config.learning_rate, steps)),
        transform=standardise(data.train),
        loss=cross_entropy(),
        epochs=config.epochs,
        batch=config.batch,
    )
    if config.scale == "paper":
        recipe = dataclasses.replace(
            recipe, optimizer=lambda steps: krizhevsky(config), augment=CropAndFlip((227, 227))
        )
    else:
        net = with_init(net, "he")
    rows, whole = {}, summarise(paper, (227, 227, 3))
    for name, (layers, _) in TABLE.items():
        left = summarise(without(paper, *layers), (227, 227, 3))
        columns = {
            "parameters": left.params,
            "parameters removed": whole.params - left.params,
            "MACs": left.macs,
            "MACs removed": whole.macs - left.macs,
        }
        rows[name] = Variant(net=without(net, *layers), recipe=recipe, columns=columns)
    return rows


def krizhevsky(config: Settings) -> optax.GradientTransformation:
    """Section 5 of the paper: momentum, weight decay, and a learning rate that falls by 10 when the error does not."""
    return optax.chain(optim.sgd(config.learning_rate, momentum=0.9, weight_decay=5e-4), optim.plateau(smallest=1e-3))


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
