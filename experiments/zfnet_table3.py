"""Zeiler & Fergus' Table 3: AlexNet and ZFNet with layers removed, and with narrower and wider ones.

Claim: The smaller first kernel and stride of ZFNet err less than AlexNet's. The width of the fully connected layers
    makes little difference; wider middle convolutions are a gain, which wide fully connected layers lose again.
Source: Zeiler & Fergus 2014, "Visualizing and understanding convolutional networks" (arXiv:1311.2901v3), Table 3.
Command: python -m experiments.zfnet_table3
Cost: smoke: half a minute on 2 CPU cores. lab: 13 minutes there. paper: 70 epochs of ImageNet a run.
Expected: lab: AlexNets at 3 to 4.5 % test error, worst without layers 3 and 4; ZFNets at 3, and hardly told apart.
Departures: Parameters and multiply-adds are those of the networks at their true size, 227×227×3 (AlexNet) or 224×224×3
    and 1,000 classes. The smoke and lab scales train them with a part of their width on digits of 67×67 pixels, with
    Adam and a cosine schedule, from He's initial weights. The paper scale trains AlexNet too as the paper says of
    ZFNet, and scores the central crop, not ten.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.alexnet import alexnet
from cnnjax.models.chain import Chain
from cnnjax.models.surgery import with_features, with_init, with_width, without
from cnnjax.models.zfnet import ADJUSTED, zfnet
from cnnjax.options import Narrow
from cnnjax.train.recipes import ZFNET
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# Zeiler & Fergus 2014, Table 3: layers that are removed, widths that differ, and the top-5 validation error, %
# fmt: off
TABLE = {
    "alexnet":            ((), {}, 18.1),
    "alexnet-no-3,4":     (("conv3", "conv4"), {}, 22.1),
    "alexnet-no-7":       (("fc7",), {}, 18.4),
    "alexnet-no-6,7":     (("fc6", "fc7"), {}, 22.4),
    "alexnet-no-3,4,6,7": (("conv3", "conv4", "fc6", "fc7"), {}, 50.1),
    "alexnet-fc2048":     ((), ADJUSTED["zfnet_fc2048"], 18.8),
    "alexnet-fc8192":     ((), ADJUSTED["zfnet_fc8192"], 18.1),
    "zfnet":              ((), {}, 16.5),
    "zfnet-fc2048":       ((), ADJUSTED["zfnet_fc2048"], 17.6),
    "zfnet-fc8192":       ((), ADJUSTED["zfnet_fc8192"], 17.0),
    "zfnet-wide":         ((), ADJUSTED["zfnet_wide"], 16.0),
    "zfnet-both":         ((), ADJUSTED["zfnet_both"], 16.9),
}
# fmt: on

CLAIMS = (
    Claim("ZFNet errs less than AlexNet", {"alexnet": 1, "zfnet": -1}, above=0),
    Claim("without layers 3, 4, 6 and 7 it is worst", {"alexnet-no-3,4,6,7": 1, "alexnet": -1}, above=0),
    Claim("half as many units make little difference", {"alexnet-fc2048": 1, "alexnet": -1}, below=1),
    Claim("twice as many units make little difference", {"alexnet-fc8192": 1, "alexnet": -1}, above=-1, below=1),
    Claim("wider middle convolutions are a gain", {"zfnet": 1, "zfnet-wide": -1}, above=0),
    Claim("wide fully connected layers lose it again", {"zfnet-both": 1, "zfnet-wide": -1}, above=0),
)


LAB = Narrow(scale="lab", seeds=5, size=67, channels=1, width=0.25, epochs=8, batch=64, learning_rate=1e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, width=1 / 16, epochs=0.05),
    "lab": LAB,
    "paper": Narrow(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=256, channels=3, width=1, epochs=70, batch=128,
        learning_rate=0.01, metric="error5", bar=20,
    ),
}  # fmt: skip


def network(name: str, classes: int = 1000) -> Chain:
    removed, widths, _ = TABLE[name]
    net = (alexnet if name.startswith("alexnet") else zfnet)(classes)
    return with_features(without(net, *removed), **widths)


def side(name: str) -> int:
    """Of the square that the network sees at its true size."""
    return 227 if name.startswith("alexnet") else 224


def variants(config: Narrow, data: Dataset) -> dict[str, Variant]:
    adam = adam_recipe(config, data)

    def row(name: str) -> Variant:
        recipe, init = adam, "he"
        if config.scale == "paper":
            recipe, init = printed_recipe(ZFNET, config, data, crop=side(name)), "normal_0.01"
        net = with_init(with_width(network(name, len(data.classes)), config.width), init)
        whole = summarise(network(name), (side(name), side(name), 3))
        return Variant(net=net, recipe=recipe, columns={"parameters": whole.params, "MACs": whole.macs})

    return {name: row(name) for name in TABLE}


EXPERIMENT = Experiment(
    name="zfnet_table3",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={name: error for name, (*_, error) in TABLE.items()},
    published_as="top-5 validation error on ImageNet 2012 (Zeiler & Fergus 2014, Table 3)",
    smoke=("alexnet-no-7", "zfnet", "zfnet-both"),
    reference="zfnet",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
