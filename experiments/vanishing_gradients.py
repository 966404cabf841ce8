"""Where the gradient goes: its norm in every layer, at the start and in training, of six kinds of deep networks.

Claim: In a plain network of sigmoids the gradient vanishes from layer to layer, and the network does not learn; batch
    normalisation, shortcuts, gates, dense connections and auxiliary heads each bring it to the first layers.
Source: The lectures on deep networks, without numbers; He et al. 2015 (arXiv:1512.03385), section 4.1.
Command: python -m experiments.vanishing_gradients
Cost: smoke: 2 minutes on 2 CPU cores. lab: 10 minutes there. paper: an hour.
Expected: lab: the plain sigmoids' gradient falls by 30 powers of ten and more over 100 layers, and of 30 layers they
    learn nothing; heads a third apart do not help.
Departures: Fully connected layers behind two convolutions, so that images are read well; digits are shifted by up to
    2 pixels in training. Layers are alike, and loop in one compiled program. Auxiliary heads follow each third but the
    last. A residual layer is x + W act(x) / √depth, a dense one appends 8 units. Weights: He's or Glorot's.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cnnjax import figures
from cnnjax.analysis.gradients import gradient_norms, initial_gradient_norms
from cnnjax.data.augment import RandomCrop
from cnnjax.data.images import normalise
from cnnjax.data.splits import Dataset
from cnnjax.experiment import Experiment, adam_recipe, main
from cnnjax.models.chain import Chain
from cnnjax.models.deep import KINDS, deep
from cnnjax.options import Config
from cnnjax.page import Picture
from cnnjax.train import metrics
from cnnjax.train.recipe import CROSS_ENTROPY
from cnnjax.train.state import variables
from cnnjax.variant import Variant, scores, trained
from cnnjax.verdict import Claim

ACTS = ("sigmoid", "tanh", "relu")
CURES = {"bn": "batch normalisation", "residual": "shortcuts", "highway": "gates", "dense": "dense connections",
         "aux": "auxiliary heads"}  # fmt: skip
CLAIMS = (
    Claim("over the deepest plain sigmoids the gradient falls a millionfold", {"plain-sigmoid": 1}, below=-6,
          metric="decades"),
    Claim("plain sigmoids do not learn", {"plain-sigmoid": 1}, above=50),
    Claim("shortcuts let them learn", {"residual-sigmoid": 1}, below=10),
    *(Claim(f"with {words} a thousand times more gradient reaches the first layer",
            {f"{kind}-sigmoid": 1, "plain-sigmoid": -1}, above=3, metric="decades") for kind, words in CURES.items()),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of networks that pass gradients on."""

    deepest: int = 100
    """Layers of the deepest networks, whose gradients are taken at the start; less deep ones have 8, 20 and 50."""
    depth: int = 30
    """Layers of the networks that are trained."""
    width: int = 32
    """Units of a layer."""

    def __post_init__(self):
        super().__post_init__()
        self.at_least(deepest=3, depth=3, width=1)


LAB = Settings(scale="lab", seeds=3, epochs=20, batch=128, learning_rate=2e-3, bar=4)
SMOKE = dataclasses.replace(LAB, scale="smoke", seeds=2, deepest=6, depth=6, width=8, epochs=0.2)
SCALES = {"smoke": SMOKE, "lab": LAB, "paper": dataclasses.replace(LAB, scale="paper", data="mnist", seeds=5)}


def variants(config: Settings, data: Dataset) -> dict[str, Variant]:
    recipe = adam_recipe(config, data, RandomCrop(data.train.image.shape[1:3], pad=2))
    depths = [*(d for d in (8, 20, 50) if d < config.deepest), config.deepest]
    some = slice(None, None, len(data.train.label) // 128 or 1)
    batch = normalise(recipe.prepare.transform, data.train.image[some]), data.train.label[some]

    def variant(kind: str, act: str) -> Variant:
        made = partial(deep, kind, classes=len(data.classes), width=config.width, act=act)
        measure = partial(gradients, {depth: made(depth) for depth in depths}, batch)
        return Variant(net=made(config.depth), recipe=recipe, how={"watch": frozenset({"fc1"})}, measure=measure)

    return {f"{kind}-{act}": variant(kind, act) for kind in KINDS for act in ACTS}


def hidden(norms: Mapping[str, jax.Array], net: Chain) -> np.ndarray:
    """Those of the hidden layers in order, [layers]."""
    names = [name for name in net.names if name.startswith(("stack", "dense"))]
    return np.concatenate([np.atleast_1d(np.asarray(norms[name])) for name in names]).round(2)


def gradients(nets: Mapping[int, Chain], batch, variant: Variant, data: Dataset, seed: int, folder: Path, on_log):
    """The scores, the norms in the untrained networks of every depth and in the trained one, and how far they fall."""
    done, key = trained(variant, data, {seed: folder}, on_log)[seed], jax.random.key(seed)
    start = {d: hidden(initial_gradient_norms(net, CROSS_ENTROPY, key, *batch), net) for d, net in nets.items()}
    after = hidden(gradient_norms(variant.net, CROSS_ENTROPY, variables(done.state), *batch), variant.net)
    rise = start[max(start)]
    return {
        **scores(done),
        "decades": float(rise[0] - rise[-1]),
        "start": {depth: values.tolist() for depth, values in start.items()},
        "trained": after.tolist(),
    }


def pictures(folder: Path, results: Mapping[str, Any]) -> Sequence[Picture]:
    runs = {row["variant"]: list(row["seeds"].values()) for row in results["rows"]}

    def spread(rows: Sequence[Sequence[float]]) -> np.ndarray:
        """The mean over seeds, at 50 places."""
        mean = np.mean(rows, axis=0)
        return np.interp(np.linspace(0, 1, 50), np.linspace(0, 1, len(mean)), mean)

    config, depths = results["config"], next(iter(runs.values()))[0]["start"]
    panels = {f"{d} layers": [spread([run["start"][d] for run in each]) for each in runs.values()] for d in depths}
    panels[f"{config['depth']}, trained"] = [spread([run["trained"] for run in each]) for each in runs.values()]
    greys = figures.heat(panels, x="place", y="", value="log10 of the gradient's norm", limits=(-8, 1), rows=list(runs),
                         extent=(0, 1))  # fmt: skip
    drawn = [Picture("gradients", "The gradient in every layer, from the first (0) to the last (1), mean over seeds: "
                     "before the first step and, right, after training. White: it has vanished.", greys)]  # fmt: skip
    for act in ACTS:
        files = {kind: folder / f"{kind}-{act}" / f"seed-{config['seed']}" / "metrics.jsonl" for kind in KINDS}
        series = {
            kind: [(row["epoch"], max(row["train"]["grad_norm/fc1"], 1e-12), None)
                   for row in metrics.read(file) if "train" in row][::5]
            for kind, file in files.items()
        }  # fmt: skip
        curves = figures.lines(series, x="epoch", y="gradient's norm in fc1", log="y") if any(series.values()) else ""
        caption = f"In training, {act}: the gradient's norm in fc1, first seed. Less than 10⁻¹² is drawn there."
        drawn.append(Picture(f"during-{act}", caption, curves))
    return drawn


EXPERIMENT = Experiment(
    name="vanishing_gradients",
    doc=__doc__,
    scales=SCALES,
    variants=variants,
    published=dict.fromkeys(f"{kind}-{act}" for kind in KINDS for act in ACTS),
    published_as="none is printed",
    smoke=("plain-sigmoid", "bn-sigmoid", "residual-sigmoid", "highway-sigmoid", "dense-sigmoid", "aux-sigmoid"),
    reference="residual-sigmoid",
    claims=CLAIMS,
    measured={"decades": "fall over the deepest, powers of ten"},
    pictures=pictures,
)

if __name__ == "__main__":
    main(EXPERIMENT)
