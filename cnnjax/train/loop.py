"""The loop: the only one. Everything in which two runs can differ is an argument.

On a CPU the compiled, donated step is called from Python: inside `lax.scan` or under `vmap` XLA's convolutions lose
their fast kernels and are 3 to 20 times slower, and a call costs microseconds. The device has the next steps at hand
before it is done with one, but not so many that a run which is asked to stop goes on for long.
"""

import contextlib
import functools
import math
import time
import zlib
from collections.abc import Callable
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
from cnnjax.train import checkpoint, fingerprint
from cnnjax.train.evaluate import evaluate
from cnnjax.train.feed import CentreCrop, Prepare, stream
from cnnjax.train.interrupt import Interrupted, postponed
from cnnjax.train.losses import Loss
from cnnjax.train.metrics import Row, append, rewind
from cnnjax.train.optim import observe
from cnnjax.train.state import Layers, State, create, variables
from cnnjax.train.step import F32, Augment, Policy, train_step

STATIC = ("frozen", "augment", "policy", "axis_name", "ema_decay")
AHEAD = 2  # steps that wait for the device

_train_step = jax.jit(train_step, static_argnums=(0, 1, 2), static_argnames=STATIC, donate_argnums=4)


class NonFinite(CnnjaxError):
    """Training has diverged; `step` counts the updates up to and with the first one that was seen not to be finite."""

    exit_code = 3

    def __init__(self, step: int, what: str):
        super().__init__(f"training diverged: {what} is not finite at step {step}\ntry a smaller learning rate")
        self.step = step


class Run(NamedTuple):
    """What `fit` returns: the last state, the last evaluation (see `evaluate`), and the rows of metrics.jsonl."""

    state: State
    metrics: dict[str, float]
    history: list[Row]


def fit(
    net: Any,
    tx: optax.GradientTransformation,
    loss: Loss,
    data: Dataset,
    *,
    transform: Transform,
    batch: int,
    steps: int,
    seed: int,
    folder: Path | None = None,
    frozen: frozenset[str] = frozenset(),
    augment: Augment | None = None,
    view: Augment | None = None,
    start: Callable[[Layers], Layers] | None = None,
    policy: Policy = F32,
    ema_decay: float | None = None,
    workers: int = 0,
    log_every: int = 50,
    eval_every: int | None = None,
    save_every: int | None = None,
    keep_best: bool = False,
    on_log: Callable[[Row], None] | None = None,
) -> Run:
    """Trains `net` from `seed` for `steps` updates of `batch` examples, and scores it on `data.test`.

    Every `log_every` steps it writes a row of the means since the last one, every `eval_every` it evaluates, every
    `save_every` it saves, and at the end all three.

    `folder` keeps metrics.jsonl and checkpoints, and the same call goes on from the newest one there that is whole, to
    the same bits as a run that was never interrupted; so do more `steps` than last time. None keeps nothing. There are
    the last two checkpoints and, with `keep_best`, the one with the lowest test error, which is saved when it is found.
    After SIGTERM or SIGINT the step is finished and saved, and `Interrupted` raised; a second signal ends the process.
    `augment`: `(key, batch) -> batch` on uint8 images, compiled. `view`: the same for evaluation, without a key; None
    is the steps of `augment` that draw nothing and, where it crops, the central crop.
    `start`: what is done to the initial parameters, e.g. `surgery.transplant`.
    `ema_decay`: keep and evaluate running averages of the variables. `workers`: processes that decode a set too big
    for the memory. `on_log` is given every row.

    All seeds of a variant share one compiled step if they are given the same `tx`, which, being made of functions, is,
    like `start`, a setting that cannot be compared when a run goes on.

    Raises `NonFinite` when a log point, an evaluation or a save sees a loss, gradient or parameter that is not finite;
    what was saved before is finite. Raises `NotSaved` when the disk is full. Raises `CnnjaxError` for labels that the
    network has no logit for, a folder that cannot be written, or one that holds a run with other settings.
    """
    every = {"log_every": log_every, "eval_every": eval_every, "save_every": save_every}
    for name, value in {"batch": batch, "steps": steps, **every}.items():
        if value is not None and value < 1:
            raise CnnjaxError(f"{name} is {value!r}; it must be at least 1")
    init_key, key = jax.random.split(jax.random.key(seed))
    prepare = Prepare(transform, augment)
    shape = _image_shape(prepare, data)
    crop = () if data.test.image.shape[1:3] == shape[:2] else (CentreCrop((shape[0], shape[1])),)
    scored = Prepare(transform, view or Compose((fixed(augment), *crop)))
    how = {"frozen": frozen, "augment": prepare, "policy": policy, "axis_name": None, "ema_decay": ema_decay or 0.0}
    settings = fingerprint.of(
        {"net": net, "loss": loss, "data": _describe(data), "batch": batch, "seed": seed, **how, "ema_decay": ema_decay}
        | ({} if view is None else {"view": view})
    )
    given, kept = (net, tx, init_key, shape), {"frozen": frozen, "average": ema_decay is not None}
    _check_labels(net, create.eval_shape(*given, **kept), shape, data)

    with contextlib.ExitStack() as stack:
        done, window, rows, saved, signals = 0, [], [], None, []
        if folder is not None:  # all that can be refused is refused before anything is compiled
            signals = stack.enter_context(postponed())
            best = "error" if keep_best else None
            saved = stack.enter_context(checkpoint.opened(folder / "checkpoints", best=best))
            done, window = _newest(folder, saved, settings, steps)
            rows = rewind(folder / "metrics.jsonl", done)
        # Committed to its device from the start, as a restored state is: else a resumed run would be compiled anew.
        state = create(*given, **kept)
        if start is not None:
            params = start(state.params)
            state = state._replace(
                params=params, ema=state.ema and {**state.ema, "params": jax.tree.map(jnp.copy, params)}
            )
        state = jax.device_put(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
        if saved is not None and done:
            state = checkpoint.restore(saved, done, state)
        began = mark = time.perf_counter()
        compile_seconds, timed = None, 0

        def tell(kind: str, values: dict[str, float], **timings: float | None) -> None:
            timings["seconds"] = time.perf_counter() - began
            row = {"step": done, "epoch": done * batch / len(data.train.label), kind: values, "time": timings}
            rows.append(row)
            if folder is not None:
                append(folder / "metrics.jsonl", row)
            if on_log is not None:
                on_log(row)

        def score() -> None:
            values = evaluate(net, loss, variables(state), data.test, prepare=scored, batch=batch, policy=policy)
            if not math.isfinite(values["loss"]):
                raise NonFinite(done, "the loss on the test split")
            tell("test", values)

        def due(every: int | None) -> bool:
            return done == steps or (every is not None and done % every == 0)

        batches = stream(data.train, batch=batch, seed=seed, start=done, stop=steps, workers=workers)
        for examples in stack.enter_context(contextlib.closing(batches)):
            called = time.perf_counter()
            state, metrics = _train_step(net, tx, loss, key, state, examples, **how)
            window.append(metrics)
            done, timed, error, improved = done + 1, timed + 1, None, False
            if len(window) > AHEAD:
                jax.block_until_ready(window[-1 - AHEAD]["loss"])
            if compile_seconds is None:  # the first call compiles, or finds what another seed has compiled
                mark, timed = time.perf_counter(), 0
                compile_seconds = mark - called
            if due(log_every):
                window = _finite(window, done)
                means = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
                speed = timed * batch / (time.perf_counter() - mark) if timed else None
                tell("train", means, images_per_second=speed, compile_seconds=compile_seconds)
                window = []
            if due(eval_every):
                score()
                *before, error = (row["test"]["error"] for row in rows if "test" in row)
                improved = keep_best and error < min(before, default=math.inf)
                state = state._replace(opt_state=observe(state.opt_state, error))
            if saved is not None and (due(save_every) or improved or signals):
                window = _finite(window, done)
                if not _all_finite((state.params, state.stats, state.ema)):
                    raise NonFinite(done, "a parameter")
                checkpoint.save(saved, done, state, {"settings": settings, "window": window, "error": error})
            if signals:
                raise Interrupted(signals[0], f"stopped after step {done}, which is saved")
            if due(log_every) or due(eval_every) or due(save_every):
                mark, timed = time.perf_counter(), 0
        if not rows or rows[-1]["step"] != steps or "test" not in rows[-1]:
            score()
    return Run(state, rows[-1]["test"], rows)


def _newest(
    folder: Path, saved: checkpoint.Checkpoints, settings: dict[str, Any], steps: int
) -> tuple[int, list[dict[str, float]]]:
    """The step of the newest whole checkpoint and the metrics since its last row; 0 and none where there is none."""
    newest = checkpoint.latest(saved)
    if newest is None:
        return 0, []
    facts = checkpoint.facts(saved, newest)
    fingerprint.check(folder, facts["settings"], settings)
    if newest > steps:
        raise CnnjaxError(f"{folder} holds a run of {newest} steps, more than the {steps} asked for")
    return newest, facts["window"]


def _finite(window: list[dict[str, Any]], done: int) -> list[dict[str, float]]:
    """The metrics of the last steps as numbers, once the device has them. Raises `NonFinite`."""
    window = [{name: float(value) for name, value in row.items()} for row in jax.device_get(window)]
    for step, row in enumerate(window, start=done - len(window) + 1):
        for name, value in row.items():
            if not math.isfinite(value):
                raise NonFinite(step, name)
    return window


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _image_shape(prepare: Prepare, data: Dataset) -> tuple[int, ...]:
    """(height, width, channels) of what the network sees in training."""
    pixels = jax.ShapeDtypeStruct((1, *data.train.image.shape[1:]), np.uint8)
    batch = {"image": pixels, "label": jax.ShapeDtypeStruct((1,), np.int32)}
    return jax.eval_shape(prepare, jax.random.key(0), batch)["image"].shape[1:]


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
