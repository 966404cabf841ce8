"""The loop: the only one. Everything in which two runs can differ is an argument.

The device has the next steps at hand before it is done with one, but not so many that a run which is asked to stop goes
on for long. What the steps are compiled to, and how many of them and of the runs are one program: `parallel`.
"""

import contextlib
import dataclasses
import functools
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnnjax.data.augment import Compose, fixed
from cnnjax.data.images import Transform
from cnnjax.data.splits import Dataset
from cnnjax.errors import CnnjaxError
from cnnjax.train import checkpoint, fingerprint, parallel
from cnnjax.train.evaluate import evaluate
from cnnjax.train.feed import CentreCrop, Prepare, image_shape, resident, stream
from cnnjax.train.interrupt import Interrupted, postponed
from cnnjax.train.journal import Clock, Journal, NonFinite, write_down
from cnnjax.train.losses import Loss
from cnnjax.train.metrics import Row
from cnnjax.train.optim import observe, scaled, with_factor
from cnnjax.train.parallel import ALL, Launch
from cnnjax.train.state import Layers, State, create, variables
from cnnjax.train.step import F32, Augment, Policy

AHEAD = 2  # calls that wait for the device


class Run(NamedTuple):
    """What `fit` returns: the last state, the last evaluation (see `evaluate`), and the rows of metrics.jsonl."""

    state: State
    metrics: dict[str, float]
    history: list[Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How runs go: the further arguments of `fit` and `fit_many`."""

    transform: Transform
    batch: int
    """Examples in an update."""
    steps: int
    """Updates."""
    frozen: frozenset[str] = frozenset()
    augment: Augment | None = None
    """`(key, batch) -> batch` on uint8 images, compiled."""
    view: Augment | None = None
    """As `augment` for evaluation, without a key; None is the steps of `augment` that draw nothing and, where it crops,
    the central crop."""
    start: Callable[[Layers], Layers] | None = None
    """What is done to the initial parameters, e.g. `surgery.transplant`."""
    policy: Policy = F32
    ema_decay: float | None = None
    """Keep, and evaluate, running averages of the variables."""
    accumulate: int = 1
    """Parts into which each batch is divided to save memory: see `train_step`."""
    remat: frozenset[str] = frozenset()
    """Layers that are computed again for the gradient to save memory: see `train_step`."""
    watch: frozenset[str] = frozenset()
    """Layers whose gradients' norms are logged too: see `train_step`."""
    launch: Launch = ALL
    """The devices, which make no difference to the numbers."""
    workers: int = 0
    """Processes that decode a set too big for the memory."""
    log_every: int = 50
    """Steps between two rows of means."""
    eval_every: int | None = None
    """Steps between two evaluations; None: one at the end."""
    save_every: int | None = None
    """Steps between two checkpoints; None: one at the end."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest test error, beside the last two; it is saved when it is found."""
    tensorboard: bool = False
    """Write the rows for TensorBoard too, into the folder."""

    def __post_init__(self):
        for name in ("batch", "steps", "accumulate", "log_every", "eval_every", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CnnjaxError(f"{name} is {value!r}; it must be at least 1")
        self.launch.check(self.batch, self.accumulate)


def fit(
    net: Any,
    tx: optax.GradientTransformation,
    loss: Loss,
    data: Dataset,
    *,
    seed: int,
    folder: Path | None = None,
    on_log: Callable[[Row], None] | None = None,
    **plan: Any,
) -> Run:
    """Trains `net` from `seed` as a `Plan` says, and scores it on `data.test`.

    `folder` keeps metrics.jsonl and checkpoints, and the same call goes on from the newest one there that is whole, to
    the same bits as a run that was never interrupted; so do more `steps` than last time. None keeps nothing. After
    SIGTERM or SIGINT the step is finished and saved, and `Interrupted` raised; a second signal ends the process.
    `on_log` is given every row.

    All seeds of a variant share one compiled step if they are given the same `tx`, which, being made of functions, is,
    like `start`, a setting that cannot be compared when a run goes on.

    Raises `NonFinite` when a log point, an evaluation or a save sees a loss, gradient or parameter that is not finite;
    what was saved before is finite. Raises `NotSaved` when the disk is full. Raises `CnnjaxError` for labels that the
    network has no logit for, a batch that the devices cannot share, a folder that cannot be written, or one that holds
    a run with other settings.
    """
    [run] = _fit(net, tx, loss, data, [Journal(seed, folder, on_log)], Plan(**plan))
    if isinstance(run, NonFinite):
        raise run
    return run


def fit_many(
    net: Any,
    tx: optax.GradientTransformation,
    loss: Loss,
    data: Dataset,
    *,
    seeds: Sequence[int],
    factors: Sequence[float] | None = None,
    folders: Sequence[Path | None] | None = None,
    on_log: Callable[[int, Row], None] | None = None,
    **plan: Any,
) -> list[Run | NonFinite]:
    """`fit` for several runs, through one compiled program: their results, or how they diverged.

    Run i starts from `seeds[i]`, multiplies its learning rate by `factors[i]`, keeps `folders[i]`, and calls
    `on_log(i, row)`. On an accelerator, where the images are kept on the device, the runs are one batched program;
    elsewhere they follow one another. The numbers are those of separate runs either way.

    Raises as `fit` does, but for `NonFinite`.
    """
    count, how = len(seeds), Plan(**plan)
    for name, given in {"factors": factors, "folders": folders}.items():
        if given is not None and len(given) != count:
            raise CnnjaxError(f"there are {count} seeds and {len(given)} {name}")
    journals = [
        Journal(
            seed,
            None if folders is None else folders[i],
            None if on_log is None else functools.partial(on_log, i),
            None if factors is None else factors[i],
        )
        for i, seed in enumerate(seeds)
    ]
    tx = tx if factors is None else scaled(tx)
    if not journals:
        return []
    if _compiled_together(how, data):
        return _fit(net, tx, loss, data, journals, how)
    return [_fit(net, tx, loss, data, [journal], how)[0] for journal in journals]


def _fit(
    net: Any, tx: optax.GradientTransformation, loss: Loss, data: Dataset, journals: Sequence[Journal], plan: Plan
) -> list[Run | NonFinite]:
    """The runs of `journals` side by side, one step at a time."""
    several, steps, batch, launch = len(journals) > 1, plan.steps, plan.batch, plan.launch
    split_keys = [jax.random.split(jax.random.key(journal.seed)) for journal in journals]
    prepare = Prepare(plan.transform, plan.augment)
    shape = image_shape(prepare, data.train)
    crop = () if data.test.image.shape[1:3] == shape[:2] else (CentreCrop((shape[0], shape[1])),)
    scored = Prepare(plan.transform, plan.view or Compose((fixed(plan.augment), *crop)))
    how = {
        "frozen": plan.frozen,
        "augment": prepare,
        "policy": plan.policy,
        "ema_decay": plan.ema_decay or 0.0,
        "accumulate": plan.accumulate,
        "remat": plan.remat,
        "watch": plan.watch,
    }
    settings = [_settings(net, loss, data, plan, prepare, journal) for journal in journals]
    kept = {"frozen": plan.frozen, "average": plan.ema_decay is not None}
    _check_labels(net, create.eval_shape(net, tx, split_keys[0][0], shape, **kept), shape, data)

    with contextlib.ExitStack() as stack:
        # all that can be refused is refused before anything is compiled
        folders = [journal.folder for journal in journals if journal.folder is not None]
        signals = stack.enter_context(postponed()) if folders else []
        found = [
            journal.open(stack, told, plan.steps, keep_best=plan.keep_best)
            for journal, told in zip(journals, settings, strict=True)
        ]
        if len(set(found)) > 1:  # they were not stopped together
            stack.close()
            return [_fit(net, tx, loss, data, [journal], plan)[0] for journal in journals]
        done = found[0]
        for journal in journals:
            journal.rewind(stack, done, tensorboard=plan.tensorboard)
        states = []
        for journal, (init_key, _) in zip(journals, split_keys, strict=True):
            state = create(net, tx, init_key, shape, **kept)
            if journal.factor is not None:
                state = state._replace(opt_state=with_factor(state.opt_state, journal.factor))
            if plan.start is not None:
                params = plan.start(state.params)
                ema = state.ema and {**state.ema, "params": jax.tree.map(jnp.copy, params)}
                state = state._replace(params=params, ema=ema)
            state = parallel.place(launch, state)
            if done and journal.saved is not None:
                state = checkpoint.restore(journal.saved, done, state)
            states.append(state)
        state, key = states[0], split_keys[0][1]
        if several:
            state, key = _stack(states), jnp.stack([key for _, key in split_keys])
        del states
        began, clock = time.perf_counter(), Clock()

        def each(state: State) -> Iterator[tuple[int, Journal, State]]:
            """The runs that go on, and the state of each."""
            for i, journal in enumerate(journals):
                if journal.failed is None:
                    yield i, journal, jax.tree.map(lambda leaf, i=i: leaf[i], state) if several else state

        def tell(journal: Journal, kind: str, values: dict[str, float], **timings: float | None) -> None:
            timings["seconds"] = time.perf_counter() - began
            journal.tell({"step": done, "epoch": done * batch / len(data.train.label), kind: values, "time": timings})

        def score(state: State) -> None:
            for _, journal, own in each(state):
                values = evaluate(
                    net, loss, variables(own), data.test, prepare=scored, batch=batch, policy=plan.policy, launch=launch
                )
                if math.isfinite(values["loss"]):
                    tell(journal, "test", values)
                else:
                    journal.diverged(done, "the loss on the test split")

        def due(every: int | None) -> bool:
            return done == steps or (every is not None and done % every == 0)

        def keep(journal: Journal, own: State, told: dict[str, Any], error: float | None) -> None:
            if not _all_finite((own.params, own.stats, own.ema)):
                journal.diverged(done, "a parameter")
            elif journal.failed is None and journal.saved is not None:
                facts = {"settings": told, "window": journal.window, "error": error}
                checkpoint.save(journal.saved, done, own, facts)

        waiting: list[dict[str, jax.Array]] = []
        batches = stream(
            data.train,
            batch=batch,
            seeds=[journal.seed for journal in journals],
            start=done,
            stop=steps,
            chunk=_chunk(plan, data),
            workers=plan.workers,
            launch=launch,
        )
        for span, examples in clock.waits(stack.enter_context(contextlib.closing(batches))):
            with clock.times(len(span) * batch):
                state, metrics = parallel.advance(launch, net, tx, loss, key, state, examples, steps=len(span), **how)
            waiting.append(metrics)
            done = span.stop
            if len(waiting) > AHEAD:
                jax.block_until_ready(waiting[-1 - AHEAD]["loss"])
            stop = parallel.agreed(signals, done)
            if due(plan.log_every) or due(plan.save_every) or stop or (plan.keep_best and due(plan.eval_every)):
                write_down(journals, waiting, done, several)
                waiting = []
            if due(plan.log_every):
                timings = clock.read()
                for _, journal, _ in each(state):
                    means = {name: float(np.mean([row[name] for row in journal.window])) for name in journal.window[0]}
                    tell(journal, "train", means, **timings)
                    journal.window = []
            errors, improved = [math.nan] * len(journals), False
            if due(plan.eval_every):
                score(state)
                for i, journal, _ in each(state):
                    *before, errors[i] = (row["test"]["error"] for row in journal.rows if "test" in row)
                    improved |= plan.keep_best and errors[i] < min(before, default=math.inf)
                state = state._replace(opt_state=observe(state.opt_state, errors if several else errors[0]))
            if due(plan.save_every) or improved or stop:
                for i, journal, own in each(state):
                    keep(journal, own, settings[i], None if math.isnan(errors[i]) else errors[i])
            if all(journal.failed is not None for journal in journals):
                break
            if stop:
                raise Interrupted(stop, f"stopped after step {done}, which is saved")
            if due(plan.log_every) or due(plan.eval_every) or due(plan.save_every):
                clock.restart()
        if done == steps and any("test" not in (journal.rows or [{}])[-1] for _, journal, _ in each(state)):
            score(state)
        ended = {i: Run(own, journal.rows[-1]["test"], journal.rows) for i, journal, own in each(state)}
    return [journal.failed or ended[i] for i, journal in enumerate(journals)]


def _settings(net: Any, loss: Loss, data: Dataset, plan: Plan, prepare: Prepare, journal: Journal) -> dict[str, Any]:
    """What must be the same when a run goes on. Not the devices: they make no difference to the numbers."""
    told = {
        "net": net,
        "loss": loss,
        "data": _describe(data),
        "batch": plan.batch,
        "seed": journal.seed,
        "frozen": plan.frozen,
        "augment": prepare,
        "policy": plan.policy,
        "axis_name": None,
        "ema_decay": plan.ema_decay,
        **({} if plan.view is None else {"view": plan.view}),
        **({} if plan.accumulate == 1 else {"accumulate": plan.accumulate}),
        **({} if not plan.watch else {"watch": plan.watch}),
        **({} if journal.factor is None else {"factor": journal.factor}),
    }
    return fingerprint.of(told)


def _compiled_together(plan: Plan, data: Dataset) -> bool:
    """Whether several steps, and several runs, are one program."""
    return plan.launch.accelerated and plan.launch.kind == "jit" and resident(data.train)


def _chunk(plan: Plan, data: Dataset) -> int:
    """How many steps are one compiled loop: as many as lie between two things that are to be written down."""
    if not _compiled_together(plan, data):
        return 1
    every = (plan.log_every, plan.eval_every, plan.save_every)
    between = math.gcd(*(steps for steps in every if steps is not None))
    return next(size for size in range(min(between, parallel.CHUNK), 0, -1) if between % size == 0)


def _stack(states: Sequence[State]) -> State:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _check_labels(net: Any, state: State, shape: tuple[int, ...], data: Dataset) -> None:
    """Raises `CnnjaxError` for a label without a logit: a loss would be NaN, or finite and meaningless."""
    images = jax.ShapeDtypeStruct((1, *shape), np.float32)
    output = jax.eval_shape(functools.partial(net.apply, train=False), variables(state), images)
    classes = output.logits.shape[-1]
    for name, split in {"training": data.train, "test": data.test}.items():
        if len(split.label) == 0:
            raise CnnjaxError(f"the {name} split of {data.name} is empty")
        wrong = np.flatnonzero((split.label < 0) | (split.label >= classes))
        if wrong.size:
            raise CnnjaxError(
                f"label {split.label[wrong[0]]} of example {wrong[0]} in the {name} split of {data.name} has no logit\n"
                f"the network has {classes} logits: labels are 0 to {classes - 1}"
            )


def _describe(data: Dataset) -> dict[str, Any]:
    """What tells a data set from another one of that name."""
    splits = {"train": data.train, "test": data.test}
    return {"name": data.name} | {
        name: {"images": split.image.shape, "labels": zlib.crc32(np.ascontiguousarray(split.label).tobytes())}
        for name, split in splits.items()
    }
