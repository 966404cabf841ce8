"""Where convolution helps: digits, the same with their pixels permuted, the letters of a word, sounds.

Claim: Shared, local weights help where neighbours belong together and a pattern may be anywhere, as in images, words
    and sounds; they do not where the order of the inputs means nothing, as in a table of customers.
Source: The lectures on convolutional networks. A layer of as many units as an image of 200×200 has pixels takes 1.6
    billion weights, 100 kernels of 5×5 take 2,500: the column counts that first layer. No errors are printed.
Command: python -m experiments.locality
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 5 minutes there. paper: half an hour.
Expected: lab: 4 % for the convolutional network on digits, 6 % for the perceptron; on permuted pixels it is otherwise.
Departures: A locally connected network has the units and connections of the convolutional one, and a weight for each
    connection. Letters are a one-dimensional convolution along the word; without word lists they are made up, of four
    languages in which other letters follow each letter. Sounds are made-up spectrograms, in noise: tones that rise,
    fall, do both, or stay, at any time and pitch; the convolution is along the time.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from cnnjax.analysis.summary import summarise
from cnnjax.data.augment import Fixed
from cnnjax.data.sequences import letters, sounds
from cnnjax.data.splits import Dataset, permutation
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import Conv, Dense, GlobalAvgPool
from cnnjax.models.local import unshared
from cnnjax.options import Config
from cnnjax.variant import Variant, train
from cnnjax.verdict import Claim

CLAIMS = tuple(
    Claim(text, {worse: 1, better: -1}, above=0)
    for text, worse, better in [
        ("a perceptron is worse on digits", "digits-perceptron", "digits-shared"),
        ("so are weights that are not shared", "digits-local", "digits-shared"),
        ("convolution is worse than a perceptron on permuted pixels", "permuted-shared", "permuted-perceptron"),
        ("a perceptron is worse on letters", "letters-perceptron", "letters-shared"),
        ("a perceptron is worse on sounds", "sounds-perceptron", "sounds-shared"),
    ]
)
KINDS = ("shared", "local", "perceptron")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of networks that look at neighbours, or do not."""

    words: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE")] = ()
    """The words of a language, one a line, such as /usr/share/dict/american-english; give it for each language. None:
    made-up words."""


LAB = Settings(scale="lab", seeds=5, epochs=30, batch=64, learning_rate=4e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, epochs=0.1)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": dataclasses.replace(LAB, scale="paper", data="mnist", bar=1.5)}


@dataclasses.dataclass(frozen=True)
class Permute(Fixed):
    """The pixels of every image in another order, the same for all."""

    def all(self, images):
        return images.reshape(len(images), -1)[:, permutation(images[0].size, 0)].reshape(images.shape)


def network(kind: str, classes: int, kernel, stride, *, average: bool) -> Chain:
    """Two convolutions, shared or not, averaged over the places if asked, 64 units, the output; or a perceptron."""
    if kind == "perceptron":
        return chain(fc1=Dense(128), fc2=Dense(64), output=Dense(classes, act=None))
    second = kernel if kernel[0] == kernel[1] else (1, kernel[1])
    convolutions = {"conv1": Conv(16, kernel, stride=stride), "conv2": Conv(32, second, stride=stride)}
    middle = {"average": GlobalAvgPool()} if average else {}
    net = chain({**convolutions, **middle}, fc=Dense(64), output=Dense(classes, act=None))
    return net if kind == "shared" else unshared(net)


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    dense, kernels = chain(fc=Dense(40_000, bias=False)), chain(conv=Conv(100, 5, bias=False))
    first = {"shared": kernels, "local": unshared(kernels), "perceptron": dense}
    weights = {kind: summarise(net, (200, 200, 1)).params for kind, net in first.items()}

    def variant(kind: str, of: Dataset, kernel=(5, 5), stride=(2, 2), *, permuted=False, elsewhere=True) -> Variant:
        net = network(kind, len(of.classes), kernel, stride, average=elsewhere)
        recipe = adam_recipe(config, of)
        if permuted:
            recipe = dataclasses.replace(recipe, prepare=dataclasses.replace(recipe.prepare, augment=Permute()))
        columns = {"parameters": summarise(net, of.train.image.shape[1:]).params, "at 200×200": weights[kind]}
        inner = Variant(net=net, recipe=recipe, columns=columns)

        def measure(variant, data, seed, folder, on_log):
            steps = inner.steps(of)
            return train(inner, of, seed, folder, lambda row: on_log({**row, "step": row["step"] / steps}))

        return Variant(columns=columns, measure=measure) if elsewhere else inner

    found = {}
    for kind in KINDS:
        found[f"digits-{kind}"] = variant(kind, data, elsewhere=False)
        found[f"permuted-{kind}"] = variant(kind, data, permuted=True, elsewhere=False)
        found[f"letters-{kind}"] = variant(kind, letters(config.words), (26, 3), (1, 1))
        found[f"sounds-{kind}"] = variant(kind, sounds(), (16, 5), (1, 1))
    return found


EXPERIMENT = Experiment(
    name="locality",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(f"{what}-{kind}" for what in ("digits", "permuted", "letters", "sounds") for kind in KINDS),
    published_as="none is printed",
    smoke=("digits-shared", "permuted-local", "letters-perceptron", "sounds-shared"),
    reference="digits-shared",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
