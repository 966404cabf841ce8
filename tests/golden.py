"""The golden checkpoint: written once, and to be read by every later version.

`python tests/golden.py write DIR` makes it with the versions that are installed, `python tests/golden.py read DIR`
exits with 0 if they read what is in DIR bit for bit. The one in tests/golden/ was written with jax 0.10.2 and
orbax-checkpoint 0.12.8.
"""

import argparse
from pathlib import Path

import jax
import numpy as np
import optax

from cnnjax.models.chain import chain
from cnnjax.models.layers import Conv, Dense, Norm
from cnnjax.train import checkpoint, optim
from cnnjax.train.state import State, create

FOLDER = Path(__file__).parent / "golden"
STEP, FACTS = 7, {"settings": {"net": "Chain", "seed": 0}, "window": [{"loss": 0.1}], "error": 12.5}


def like() -> State:
    """A state with all that can be in one, as shapes: statistics, momentum, a plateau, averages, counts and flags."""
    net = chain(conv1=Conv(4, 3, norm=Norm()), fc2=Dense(3, act=None))
    tx = optax.chain(optim.sgd(optim.step_decay(0.1, (5,)), momentum=0.9), optim.plateau())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = create.eval_shape(net, tx, jax.random.key(0), (5, 5, 1), frozen=frozenset(), average=True)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)


def state() -> State:
    """What was saved: sevenths, which no float holds exactly; no two leaves alike, and no random number in it."""
    leaves, tree = jax.tree.flatten(like())
    values = [(np.arange(leaf.size).reshape(leaf.shape) + i) / 7 for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(
        tree, [jax.numpy.asarray(value, leaf.dtype) for value, leaf in zip(values, leaves, strict=True)]
    )


def read(folder: Path) -> tuple[dict, State]:
    """The facts and the state of the checkpoint in `folder`, of which nothing is changed."""
    saved = checkpoint.Checkpoints(folder)
    return dict(checkpoint.facts(saved, STEP)), checkpoint.restore(saved, STEP, like())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "write":
        with checkpoint.opened(arguments.folder) as saved:
            checkpoint.save(saved, STEP, state(), FACTS)
    else:
        facts, back = read(arguments.folder)
        assert facts == FACTS
        jax.tree.map(np.testing.assert_array_equal, back, state())
