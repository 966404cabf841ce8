"""Plain networks get worse with depth, residual networks get better.

Claim: A plain network of many layers errs more than one of few, in training as well, though it could do all that the
    shallow one does; with identity shortcuts the deep network is the better one.
Source: He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition" (arXiv:1512.03385), Table 6 and
    Fig. 6, on CIFAR-10. On ImageNet (Table 2) plain nets go from 27.94 at 18 layers to 28.54 at 34, ResNets from 27.88
    to 25.03: see resnet_shortcuts.
Command: python -m experiments.resnet_depth
Cost: smoke: a quarter of a minute on 2 CPU cores. lab: 19 minutes there. paper: 64,000 steps a run on CIFAR-10.
Expected: lab: the plain net of 56 layers hardly learns, in training or in test; the ResNets all err about 4 %.
Departures: The paper prints no errors of the plain nets, only curves. `--depth` is the share of the blocks that is
    kept, and the column "layers" says what is trained: 14, 26 and 56 at the lab scale stand for 20, 56 and 110. The
    smoke and lab scales train a half of the width on digits of 16×16 pixels with Adam and a cosine schedule. Of the
    paper's five runs of 110 layers, 6.61 ± 0.16, the best is printed here. Parameters and multiply-adds are those of
    the printed depth at its true size, 32×32×3.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnjax import figures
from cnnjax.analysis.summary import summarise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main, printed_recipe
from cnnjax.models.resnet import cifar_resnet
from cnnjax.models.surgery import with_width
from cnnjax.options import Narrow
from cnnjax.page import Picture
from cnnjax.train.recipes import RECIPES
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

# He et al. 2015, Table 6: test error on CIFAR-10, %.
PUBLISHED = {
    "plain-20": None,
    "plain-56": None,
    "plain-110": None,
    "resnet-20": 8.75,
    "resnet-56": 6.97,
    "resnet-110": 6.43,
}
CLAIMS = (
    Claim("the deepest plain net errs more than the shallow one", {"plain-110": 1, "plain-20": -1}, above=0),
    Claim("it does so in training too", {"plain-110": 1, "plain-20": -1}, above=0, metric="train_error"),
    Claim("the deepest ResNet errs less than the shallow one", {"resnet-20": 1, "resnet-110": -1}, above=0),
    Claim("the deepest ResNet errs less than its plain net", {"plain-110": 1, "resnet-110": -1}, above=0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Narrow):
    """Plain and residual networks of several depths."""

    depth: float = 0.5
    """Blocks of a stage, relative to the paper's (3, 9 and 18); one at least."""

    def __post_init__(self):
        super().__post_init__()
        self.positive("depth")

    def layers(self, printed: int) -> int:
        """How many layers a network has here that has so many in the paper."""
        return 6 * max(1, round(self.depth * (printed - 2) / 6)) + 2


LAB = Settings(scale="lab", width=0.5, seeds=8, size=16, epochs=8, batch=64, learning_rate=2e-3, bar=4)
SCALES = {
    "smoke": dataclasses.replace(LAB, scale="smoke", seeds=2, depth=1 / 18, width=0.125, epochs=0.1),
    "lab": LAB,
    "paper": Settings(
        scale="paper", data="cifar10", seeds=5, depth=1, width=1, epochs=163.84, batch=128, learning_rate=0.1, bar=10
    ),
}


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    def row(name: str) -> Variant:
        kind, printed = name.split("-")
        shortcut = None if kind == "plain" else "A"
        whole = summarise(cifar_resnet(int(printed), shortcut=shortcut), (32, 32, 3))
        layers, recipe = config.layers(int(printed)), adam_recipe(config, data)
        if config.scale == "paper":
            recipe = printed_recipe(RECIPES["resnet110_cifar" if layers >= 110 else "resnet_cifar"], config, data)
        net = with_width(cifar_resnet(layers, len(data.classes), shortcut=shortcut), config.width)
        cost = {"layers": layers, "parameters": whole.params, "MACs": whole.macs}
        return Variant(net=net, recipe=recipe, columns=cost, measure=measure)

    return {name: row(name) for name in PUBLISHED}


def measure(variant: Variant, data: Dataset, seed: int, folder: Path, on_log) -> dict[str, Any]:
    """As `train`, and the mean error of the training batches in the last twentieth of the steps."""
    run = trained(variant, data, {seed: folder}, on_log)[seed]
    errors = [row["train"]["error"] for row in run.history if "train" in row]
    last = errors[-max(1, len(errors) // 20) :]
    return {**scores(run), "train_error": sum(last) / len(last)}


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    layers = {row["variant"]: row["columns"]["layers"] for row in results["rows"]}
    panels: dict[str, dict[str, Any]] = {}
    for name, seeds in figures.histories(folder, results).items():
        title = "plain" if name.startswith("plain") else "residual"
        panels.setdefault(title, {})[f"{layers[name]} layers"] = seeds
    caption = "Training error (dashed) and test error, means over the seeds, as in the paper's Figure 6."
    return [Picture("degradation", caption, figures.learning(panels))]


EXPERIMENT = Experiment(
    name="resnet_depth",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=PUBLISHED,
    published_as="test error on CIFAR-10 (He et al. 2015, Table 6)",
    reference="resnet-20",
    claims=CLAIMS,
    measured={"train_error": "training error, %"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
