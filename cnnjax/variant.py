"""One row of a table: a network, how it is trained, and what is measured of it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjax.errors import CnnjaxError

if TYPE_CHECKING:  # jax and its company load when the training begins, so that --help answers at once
    from cnnjax.data.splits import Dataset
    from cnnjax.models.chain import Chain
    from cnnjax.train.loop import Run
    from cnnjax.train.recipe import Recipe
    from cnnjax.train.state import State


OnLog = Callable[[Mapping[str, Any] | None], None]
Measure = Callable[["Variant", "Dataset", int, Path, OnLog], dict[str, Any]]


def train(variant: Variant, data: Dataset, seed: int, folder: Path, on_log: OnLog) -> dict[str, Any]:
    """Trains the variant's network from `seed`, going on from what `folder` holds: last evaluation and speed."""
    return scores(trained(variant, data, {seed: folder}, on_log)[seed])


def scores(run: Run) -> dict[str, Any]:
    """What the table says of a training: the last evaluation, and images per second, where they were measured."""
    speeds = [row["time"]["images_per_second"] for row in run.history if "train" in row]
    measured = [speed for speed in speeds if speed is not None]
    return {**run.metrics, **({"images_per_second": statistics.median(measured)} if measured else {})}


def trained(variant: Variant, data: Dataset, folders: Mapping[int, Path], on_log: OnLog) -> dict[int, Run]:
    """The variant's network, trained from the seeds of `folders` and going on from what they hold.

    Seeds are trained together where that is faster; `on_log` is given the rows of the first.
    """
    from cnnjax.train.journal import NonFinite
    from cnnjax.train.loop import fit_many
    from cnnjax.train.recipe import arguments

    recipe, steps = variant.recipe, variant.steps(data)
    assert recipe is not None
    log_every = max(1, steps // 100)
    between = max(math.ceil(len(data.train.label) / recipe.batch), math.ceil(steps / 20))
    runs = fit_many(
        variant.net,
        data=data,
        seeds=tuple(folders),
        folders=tuple(folders.values()),
        **arguments(recipe, data),
        **variant.how,
        log_every=log_every,
        eval_every=log_every * math.ceil(between / log_every),  # so that steps can be put together, see `fit_many`
        save_every=log_every * math.ceil(1000 / log_every),
        on_log=lambda i, row: on_log(row) if i == 0 else None,
    )
    found = {}
    for (seed, folder), run in zip(folders.items(), runs, strict=True):
        if isinstance(run, NonFinite):
            raise Diverged(f"{folder}: {run}") from run
        found[seed] = run
    return found


class Diverged(CnnjaxError):
    """A training whose loss is no longer finite."""

    exit_code = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table: a network, how it is trained, and what else the table says of it.

    how: what `fit` is told besides. columns: further columns, heading -> number or text. measure: what gives the
    metrics, any plain data; a row that is measured in another way than by a training needs neither network nor recipe.
    networks: how many it trains, by which the time left is reckoned. shares: whether it takes, seed by seed, what
    another row that shares has trained; such rows are measured one after the other.
    """

    net: Chain | None = None
    recipe: Recipe | None = None
    how: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Measure = train
    networks: int = 1
    shares: bool = False

    def steps(self, data: Dataset) -> int:
        """Training steps; one for what is not trained in steps."""
        from cnnjax.train import recipe

        return recipe.steps(self.recipe, len(data.train.label)) if self.recipe else 1

    def check(self, data: Dataset) -> None:
        """Raises `CnnjaxError` where images, augmentation, network, loss and optimiser do not fit; computes nothing."""
        import jax

        from cnnjax.train.state import variables

        if self.net is not None and self.recipe is not None:
            images = jax.ShapeDtypeStruct((1, *self.sees(data)), "float32")
            state = self.state(data)
            if "start" in self.how:
                jax.eval_shape(self.how["start"], state.params)
            output = jax.eval_shape(self.net.apply, variables(state), images)
            jax.eval_shape(self.recipe.loss, output, jax.ShapeDtypeStruct((1,), "int32"))

    def sees(self, data: Dataset) -> tuple[int, ...]:
        """(height, width, channels) of what the network sees of these images in training."""
        from cnnjax.train.feed import image_shape
        from cnnjax.train.recipe import preparation

        assert self.recipe is not None
        return image_shape(preparation(self.recipe, data), data.train)

    def state(self, data: Dataset) -> State:
        """Of what shapes the state of the training is."""
        import jax

        from cnnjax.train.recipe import transformation
        from cnnjax.train.state import create

        assert self.recipe is not None
        tx, average = transformation(self.recipe, self.steps(data)), self.recipe.ema_decay is not None
        given = self.net, tx, jax.random.key(0), self.sees(data)
        return create.eval_shape(*given, frozen=self.recipe.frozen, average=average)
