"""Inception step by step: naive modules, GoogLeNet, batch normalisation, v2, v3, v4 and Inception-ResNet.

Claim: 1×1 reductions cost hardly any accuracy, and each later step errs less than the one before it: normalisation, two
    3×3 for a 5×5, factorised convolutions with smoothed labels and a normalised head, v4. Residual connections do as
    well as v4.
Source: Szegedy et al. 2014 (arXiv:1409.4842), Fig. 2; Ioffe & Szegedy 2015 (arXiv:1502.03167); Szegedy et al. 2015
    (arXiv:1512.00567), Table 3; Szegedy et al. 2016 (arXiv:1602.07261).
Command: python -m experiments.inception_ladder
Cost: smoke: half a minute on 2 CPU cores. lab: 15 minutes there. paper: 100 epochs of ImageNet a run.
Expected: lab: 5 % test error without normalisation, 3 % with it, 2 % from v3 on. The verdict says which steps are seen.
Departures: Parameters and multiply-adds are those of the networks at their true size, without heads, 224×224×3 up to v2
    and 299×299×3 from v3 on. Of the published errors only v3's was read again, the others are recalled. The smoke and
    lab scales keep one module of each map size and what is between them, an eighth as wide, behind a 3×3 convolution,
    on digits of 16×16 pixels with Adam and a cosine schedule; v3's head is a 1×1 convolution and a mean there. The
    paper scale trains all rows by v3's recipe, labels smoothed from v3 on.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.chain import Aux, Block, Chain, Concat, rows
from cnnjax.models.googlenet import googlenet
from cnnjax.models.inception_bn import inception_bn
from cnnjax.models.inception_v3 import inception_v3
from cnnjax.models.inception_v4 import inception_resnet, inception_v4
from cnnjax.models.layers import Conv, Dense, GlobalAvgPool, Norm
from cnnjax.models.surgery import map_modules, with_width, without
from cnnjax.options import Narrow
from cnnjax.train.losses import cross_entropy
from cnnjax.train.recipe import for_crop
from cnnjax.train.recipes import INCEPTION_V3
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# Top-1 validation error of a single crop, %.
PUBLISHED = {"naive": None, "v1": 29.0, "bn": 26.8, "v2": 25.2, "v3": 21.2, "v4": 20.0, "inception-resnet": 19.9}
SMOOTHED = ("v3", "v4", "inception-resnet")

# What the lab scale keeps: a module at each of three map sizes, and what is between them.
GOOGLENET = ("inception_3a", "pool3", "inception_4a", "pool4", "inception_5a")
KEPT = {
    "v2": ("inception_3a", "inception_3c", "inception_4a", "inception_4e", "inception_5a"),
    "v3": ("Mixed_5b", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7b"),
    "v4": ("Inception-A_1", "Reduction-A", "Inception-B_1", "Reduction-B", "Inception-C_1"),
    "inception-resnet": (
        "Inception-ResNet-A_1", "Reduction-A", "Inception-ResNet-B_1", "Reduction-B", "Inception-ResNet-C_1",
    ),
}  # fmt: skip

STEPS = {"v1": "normalisation", "bn": "two 3×3 for a 5×5", "v2": "v3", "v3": "v4"}
CLAIMS = (
    Claim("reductions cost hardly any accuracy", {"v1": 1, "naive": -1}, below=0.5),
    *(
        Claim(f"{what} helps", {before: 1, after: -1}, above=0)
        for (before, what), after in zip(STEPS.items(), ("bn", "v2", "v3", "v4"), strict=True)
    ),
    Claim("with residual connections it is as good as v4", {"inception-resnet": 1, "v4": -1}, below=0.5),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """The steps from GoogLeNet to Inception-ResNet."""

    modules: int = 3
    """Modules that are kept, one of each map size, at the smoke and lab scales: 1, 2 or 3."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(modules=1)


LAB = Settings(scale="lab", width=0.125, seeds=5, size=16, epochs=8, batch=64, learning_rate=2e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, size=14, width=1 / 32, modules=1, epochs=0.05),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=342, channels=3, width=1, epochs=100, batch=1600,
        learning_rate=0.045, bar=26,
    ),
}  # fmt: skip


def network(name: str, classes: int = 1000, *, aux: bool = False) -> Chain:
    """The network of a row at its true size."""
    if name in ("v2", "v4"):
        return (inception_bn if name == "v2" else inception_v4)(classes)
    if name in KEPT:
        return inception_v3(classes, aux=aux) if name == "v3" else inception_resnet("v2", classes)
    net = googlenet(classes=classes, aux=False)
    if name == "naive":
        return map_modules(net, lambda m: m.clone(branches=_unreduced(m)) if isinstance(m, Concat) else m)
    if name == "bn":
        norm, net = Norm(epsilon=1e-3), without(net, "norm1", "norm2")
        return map_modules(net, lambda m: m.clone(bias=False, norm=norm) if isinstance(m, Conv) else m)
    return net


def _unreduced(module: Concat):
    """The branches of Fig. 2a: 1×1, 3×3, 5×5 and pooling side by side, on all maps."""
    gone = ("3x3_reduce", "5x5_reduce", "pool_proj")
    return tuple(tuple(row for row in branch if row.name not in gone) for branch in module.branches)


def small(name: str, classes: int, modules: int) -> Chain:
    """One module of each map size behind a 3×3 convolution."""
    net, kept = network(name, classes), KEPT.get(name, GOOGLENET)[: 2 * modules - 1]
    end = next(i for i, row in enumerate(net.layers) if isinstance(row.module, GlobalAvgPool))
    norm = None if name in ("naive", "v1") else Norm(epsilon=1e-3)
    stem = Conv(384 if name in ("v4", "inception-resnet") else 192, 3, pad=1, bias=norm is None, norm=norm)
    layers = (*rows(conv1=stem), *(row for row in net.layers[:end] if row.name in kept), *net.layers[end:])
    head = rows(conv=Conv(128, 1, bias=False, norm=norm), gap=GlobalAvgPool(), fc=Dense(classes, act=None))
    return Chain(layers, (Aux("AuxLogits", "Mixed_6e", Block(head)),) if "Mixed_6e" in kept else ())


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    def row(name: str) -> Variant:
        side, recipe = 299 if name in SMOOTHED else 224, adam_recipe(config, data)
        whole = summarise(network(name), (side, side, 3))
        if config.scale == "paper":
            recipe = printed_recipe(for_crop(INCEPTION_V3, side), config, data)
            net = network(name, len(data.classes), aux=True)
        else:
            net = small(name, len(data.classes), config.modules)
        loss = cross_entropy(label_smoothing=0.1 if name in SMOOTHED else 0.0, aux_weight=0.4)
        recipe, cost = dataclasses.replace(recipe, loss=loss), {"parameters": whole.params, "MACs": whole.macs}
        return Variant(net=with_width(net, config.width), recipe=recipe, columns=cost)

    return {name: row(name) for name in PUBLISHED}


EXPERIMENT = Experiment(
    name="inception_ladder",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="top-1 validation error on ImageNet 2012, one crop (the papers; all but v3's recalled)",
    smoke=("naive", "v2", "v4"),
    reference="v2",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
