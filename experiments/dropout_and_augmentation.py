"""What each of AlexNet's devices is worth: ReLU, normalisation, overlapping pooling, dropout, augmentation, decay.

Claim: AlexNet is worse without any one of them.
Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", sections 3 to 5. It
    prints the error of the whole; from memory, normalisation is worth 1.2 and overlapping 0.3 points of top-5 error.
Command: python -m experiments.dropout_and_augmentation
Cost: smoke: half a minute on 2 CPU cores. lab: 7 minutes there. paper: 90 epochs of ImageNet a run, days on a GPU.
Expected: lab: about 3 % with all of them and without any one but ReLU, without which it is 6 %; without dropout 2.3.
Departures: Without ReLU units are tanh; without overlapping, windows are 2×2. The smoke and lab scales train the
    network with a part of its width on crops of 67×67 of 72×72 pixels, digits that are not mirrored, from He's initial
    weights with Adam, for few steps of the paper's rule do not get it started; decay is 0.1, decoupled (Loshchilov &
    Hutter 2019), and the learning rate falls to 0 on half a cosine. Evaluation sees the central crop, the paper ten.
"""

import dataclasses
from functools import partial

import optax

from cnnjax.data.augment import Compose, RandomCrop
from cnnjax.data.colour import mean_image
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.alexnet import alexnet
from cnnjax.models.chain import Chain
from cnnjax.models.layers import MaxPool
from cnnjax.models.surgery import replace, with_activation, with_features, with_init, without
from cnnjax.options import Narrow
from cnnjax.train.feed import CentreCrop, Prepare
from cnnjax.train.recipe import SGD, Recipe
from cnnjax.train.recipes import ALEXNET
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

DEVICES = {
    "relu": "the rectifier",
    "normalisation": "response normalisation",
    "overlap": "overlapping pooling",
    "dropout": "dropout",
    "augmentation": "augmentation",
    "decay": "weight decay",
}
CLAIMS = tuple(
    Claim(f"without {words} it is worse", {f"no-{device}": 1, "all": -1}, above=0) for device, words in DEVICES.items()
)


LAB = Narrow(scale="lab", width=0.25, seeds=5, size=72, channels=1, epochs=12, batch=64, learning_rate=1e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, width=1 / 16, epochs=0.1),
    "lab": LAB,
    "paper": Narrow(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=256, channels=3, width=1, epochs=90, batch=128,
        learning_rate=0.01, metric="error5", bar=20,
    ),
}  # fmt: skip


DECAYED = partial(optax.adamw, weight_decay=0.1)


def small_recipe(config: Narrow, data: Dataset) -> Recipe:
    """Adam with decoupled decay on crops of 67×67, the rate on half a cosine."""
    recipe = dataclasses.replace(adam_recipe(config, data), crop=67, optimiser=DECAYED)
    return dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, augment=RandomCrop((67, 67))))


def variants(config: Narrow, data: Dataset) -> dict[str, Variant]:
    net = alexnet(len(data.classes))
    layers = [name for name in net.names[:-1] if hasattr(net[name], "features")]
    net = with_features(net, **{name: 2 * max(1, round(config.width * net[name].features / 2)) for name in layers})
    if config.scale == "paper":
        recipe = printed_recipe(ALEXNET, config, data)
        still = Compose((mean_image(data.train), CentreCrop((227, 227))))
    else:
        recipe, net, still = small_recipe(config, data), with_init(net, "he"), CentreCrop((67, 67))
    unmoved = dataclasses.replace(recipe, prepare=Prepare(recipe.prepare.transform, still))
    undecayed = dataclasses.replace(recipe, optimiser=SGD() if config.scale == "paper" else optax.adam)
    pool = MaxPool(2, stride=2)

    def undropped(net: Chain) -> Chain:
        return replace(net, **{name: net[name].clone(dropout=0.0) for name in ("fc6", "fc7")})

    rows = {
        "all": (net, recipe),
        "no-relu": (with_activation(net, "tanh"), recipe),
        "no-normalisation": (without(net, "norm1", "norm2"), recipe),
        "no-overlap": (replace(net, pool1=pool, pool2=pool, pool5=pool), recipe),
        "no-dropout": (undropped(net), recipe),
        "no-augmentation": (net, unmoved),
        "no-decay": (net, undecayed),
    }
    return {name: Variant(net=net, recipe=recipe) for name, (net, recipe) in rows.items()}


EXPERIMENT = Experiment(
    name="dropout_and_augmentation",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={"all": 18.2, **dict.fromkeys(f"no-{device}" for device in DEVICES)},
    published_as="top-5 validation error on ImageNet 2012 (Krizhevsky et al. 2012, Table 2, one network, ten crops)",
    reference="all",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
