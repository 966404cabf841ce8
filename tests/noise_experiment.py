"""A training of seconds, as an experiment with a command line, for the tests of what a run survives.

Claim: Dark images can be told from bright ones.
Source: none.
Command: python tests/noise_experiment.py --data npz:FILE --workdir DIR
Expected: nothing.

It prints a line for each row that it logs, and at the end the SHA-256 of its state.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from cnnjax.experiment import Experiment, main
from cnnjax.options import Config
from cnnjax.variant import Variant
from cnnjax.verdict import Claim

LOG, EVALUATE = 5, 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """The options of this experiment."""

    epochs: float = 50.0
    batch: int = 20  # 96 / 20 is no whole number: batches lie across the ends of epochs
    seeds: int = 1
    save_every: int = 12
    """Steps between two checkpoints."""
    explode_at: int = 10**9
    """The step, after the 150th, at which the learning rate becomes absurd."""


def write_data(path: Path) -> str:
    """Images of noise, and whether they are bright; the source that reads them."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (192, 8, 8, 1), dtype=np.uint8)
    label = (image.mean(axis=(1, 2, 3)) > 127).astype(np.int32)
    np.savez(path, image=image, label=label, split=np.repeat(["train", "test"], 96))
    return f"npz:{path}"


def variants(config: Settings, data) -> dict[str, Variant]:
    """One network with all that a state can hold: statistics, momentum, a plateau, averages; and dropout."""
    from cnnjax.data.images import Transform
    from cnnjax.models.chain import chain
    from cnnjax.models.layers import Conv, Dense, Dropout, Norm
    from cnnjax.train.feed import Prepare
    from cnnjax.train.loop import fit
    from cnnjax.train.recipe import SGD, Drops, Recipe

    tx = _optimizer(config.explode_at)

    def measure(variant, data, seed, folder, on_log):
        def tell(row):
            print("row", row["step"], flush=True)
            on_log(row)

        run = fit(
            variant.net,
            tx,
            variant.recipe.loss,
            data,
            transform=variant.recipe.prepare.transform,
            batch=config.batch,
            steps=variant.steps(data),
            seed=seed,
            folder=folder,
            ema_decay=0.99,
            log_every=LOG,
            eval_every=EVALUATE,
            save_every=config.save_every,
            on_log=tell,
        )
        print("sha256", digest(run.state), flush=True)
        return run.metrics

    net = chain(conv1=Conv(8, 3, norm=Norm()), drop2=Dropout(0.5), fc3=Dense(2, act=None))
    recipe = Recipe(
        batch=config.batch,
        epochs=config.epochs,
        schedule=Drops((0.05,)),
        optimiser=SGD(),
        prepare=Prepare(Transform(mean=(0.5,))),
    )
    return {"net": Variant(net=net, recipe=recipe, measure=measure)}


@functools.cache
def _optimizer(explode_at: int):
    """One object, so that a second run in this process finds its step compiled."""
    import optax

    from cnnjax.train import optim

    rate = optim.piecewise((0.05, 0.005, 1e30), (150, explode_at - 150))
    return optax.chain(optim.sgd(rate, momentum=0.9, weight_decay=1e-3), optim.plateau(patience=2))


def digest(tree) -> str:
    """The SHA-256 of a tree: the names and the bits of all leaves."""
    import jax

    told = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        told.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return told.hexdigest()


EXPERIMENT = Experiment(
    name="noise_experiment",
    doc=__doc__ or "",
    scales={"smoke": Settings(scale="smoke"), "lab": Settings(), "paper": Settings(scale="paper")},
    variants=variants,
    published={"net": None},
    published_as="nothing",
    reference="net",
    claims=[Claim("it is better than chance", {"net": -1}, above=-50)],
)

if __name__ == "__main__":
    main(EXPERIMENT)
