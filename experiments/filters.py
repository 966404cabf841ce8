"""One 7×7 convolution or three of 3×3: the same receptive field with 49 or 27 weights for each pair of maps.

Claim: A stack of small convolutions sees as much as one large one, has fewer weights and multiply-adds and more
    non-linearities, and errs less.
Source: Simonyan & Zisserman 2014, "Very deep convolutional networks for large-scale image recognition"
    (arXiv:1409.1556), section 2.3, and the lectures: 49C² against 27C² weights. Neither prints errors.
Command: python -m experiments.filters
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 7 minutes there. paper: 50 epochs of CIFAR-10 a run.
Expected: lab: 3 % test error in every row, and half a point more without non-linearities between the 3×3.
Departures: The paper trains no such pair. Here a network of 3×3 convolution, pooling, stack, pooling, stack and a
    linear classifier differs in its two stacks alone. "three-3x3-linear" has no non-linearity inside a stack. The paper
    scale is ours: the same on CIFAR-10 with 64 maps. Weights, multiply-adds and receptive field are those of a stack on
    56×56 maps, C = 256, without biases.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.chain import Block, Chain, Rows, chain, rows
from cnnjax.models.layers import Conv, Dense, MaxPool
from cnnjax.options import Config
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# The kernels of a stack, and what follows all but the last.
STACKS = {
    "7x7": ((7,), "relu"),
    "three-3x3": ((3, 3, 3), "relu"),
    "three-3x3-linear": ((3, 3, 3), None),
    "5x5": ((5,), "relu"),
    "two-3x3": ((3, 3), "relu"),
}
CLAIMS = (
    Claim("three 3×3 err less than one 7×7", {"7x7": 1, "three-3x3": -1}, above=0),
    Claim("two 3×3 err less than one 5×5", {"5x5": 1, "two-3x3": -1}, above=0),
    Claim("the non-linearities between them help", {"three-3x3-linear": 1, "three-3x3": -1}, above=0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Stacks of convolutions."""

    maps: int = 16
    """Maps of the first stack; the second has twice as many."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(maps=1)


LAB = Settings(scale="lab", seeds=5, maps=16, epochs=16, batch=64, learning_rate=3e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, maps=4, epochs=0.25),
    "lab": LAB,
    "paper": Settings(scale="paper", data="cifar10", seeds=5, maps=64, epochs=50, batch=128, bar=30),
}


def stack(name: str, maps: int, *, bias: bool = True) -> Rows:
    kernels, between = STACKS[name]
    acts = (between,) * (len(kernels) - 1) + ("relu",)
    convs = [Conv(maps, k, pad=k // 2, bias=bias, act=act) for k, act in zip(kernels, acts, strict=True)]
    return rows({f"conv{i}": conv for i, conv in enumerate(convs, start=1)})


def network(name: str, maps: int, classes: int) -> Chain:
    return chain(
        conv1=Conv(maps, 3, pad=1),
        pool1=MaxPool(2, stride=2),
        stack2=Block(stack(name, maps)),
        pool2=MaxPool(2, stride=2),
        stack3=Block(stack(name, 2 * maps)),
        fc=Dense(classes, act=None),
    )


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    recipe = adam_recipe(config, data)

    def row(name: str) -> Variant:
        alone = summarise(Chain(stack(name, 256, bias=False)), (56, 56, 256))
        net, field = network(name, config.maps, len(data.classes)), alone.rows[-1].field
        cost = {
            "receptive field": "×".join(map(str, field or ())),
            "weights / C²": alone.params // 256**2,
            "weights": alone.params,
            "MACs": alone.macs,
        }
        return Variant(net=net, recipe=recipe, columns=cost)

    return {name: row(name) for name in STACKS}


EXPERIMENT = Experiment(
    name="filters",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(STACKS),
    published_as="none; Simonyan & Zisserman 2014, section 2.3, count weights",
    reference="three-3x3",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
