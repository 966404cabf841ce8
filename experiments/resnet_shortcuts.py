"""A shortcut may be nothing, the identity with zeros (A), a projection where the shape changes (B) or everywhere (C).

Claim: The shortcut is what counts, not what is in it: identities do nearly as well as projections, so that projections
    are not needed against degradation.
Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), Table 3 and
    section 4.1, plain-34 and ResNet-34.
Command: python -m experiments.resnet_shortcuts
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 9 minutes there. paper: 120 epochs of ImageNet a run.
Expected: lab: about 3 % test error with identities or few projections, 5 % with projections everywhere, 8 % without.
Departures: Parameters and multiply-adds are those of 34 layers at 224×224×3 and 1,000 classes. The smoke and lab scales
    train the CIFAR form with fewer layers and a half of the width on digits of 16×16 pixels, shifted by up to one, with
    Adam and a cosine schedule. The paper scale scores the central crop, not ten.
"""

import dataclasses

from cnnjax.analysis.summary import summarise
from cnnjax.data.augment import RandomCrop
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.resnet import cifar_resnet, resnet
from cnnjax.models.surgery import with_width
from cnnjax.options import Narrow
from cnnjax.train.recipes import RESNET
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

# He et al. 2015, Table 3: the shortcuts, and top-1 validation error with ten crops, %.
TABLE = {"plain": (None, 28.54), "A": ("A", 25.03), "B": ("B", 24.52), "C": ("C", 24.19)}

CLAIMS = (
    Claim("without shortcuts it is worse", {"plain": 1, "A": -1}, above=0),
    Claim("projections where the shape changes bring less than a point", {"A": 1, "B": -1}, below=1),
    Claim("projections everywhere bring less than another point", {"B": 1, "C": -1}, below=1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """The shortcuts of a residual network."""

    layers: int = 34
    """Layers of the network: 18 or 34 as on ImageNet, else 6n + 2 as on CIFAR."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(layers=1)


LAB = Settings(scale="lab", seeds=5, size=16, layers=32, width=0.5, epochs=10, batch=64, learning_rate=2e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, layers=8, width=0.125, epochs=0.1),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="tfds:imagenet2012", seeds=1, size=480, channels=3, layers=34, epochs=120, batch=256,
        learning_rate=0.1, bar=27,
    ),
}  # fmt: skip


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    recipe = adam_recipe(config, data, RandomCrop(data.train.image.shape[1:3], pad=1))
    make = resnet if config.layers in (18, 34) else cifar_resnet
    if config.scale == "paper":
        recipe = printed_recipe(RESNET, config, data)

    def row(shortcut) -> Variant:
        whole = summarise(resnet(34, shortcut=shortcut), (224, 224, 3))
        net = with_width(make(config.layers, len(data.classes), shortcut=shortcut), config.width)
        return Variant(net=net, recipe=recipe, columns={"parameters": whole.params, "MACs": whole.macs})

    return {name: row(shortcut) for name, (shortcut, _) in TABLE.items()}


EXPERIMENT = Experiment(
    name="resnet_shortcuts",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published={name: error for name, (_, error) in TABLE.items()},
    published_as="top-1 validation error on ImageNet 2012, 34 layers, 10 crops (He et al. 2015, Table 3)",
    reference="A",
    claims=CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
