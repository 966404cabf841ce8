"""One update and one evaluation: pure functions, top-level, compiled and placed on devices by their callers.

`net`, `tx`, `loss`, `frozen`, `augment` and `policy` are compiled in (they hash and compare); `key`, `state` and
`batch` are arrays, so that every seed of a variant runs through one compiled program.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Output
from cnnjax.train.losses import Loss
from cnnjax.train.state import Layers, State, Tree, merge, split

Batch = Mapping[str, Any]  # of arrays
Augment = Callable[[Any, Batch], Batch]  # (key, batch) -> batch


@dataclasses.dataclass(frozen=True)
class Policy:
    """The number format of the forward and backward pass. Parameters, statistics, loss and updates stay float32."""

    compute: str = "float32"

    def cast(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.astype(self.compute), tree)


F32 = Policy()
BF16 = Policy("bfloat16")


def forward(net: Any, variables: Mapping[str, Layers], images: jax.Array, policy: Policy, **how: Any) -> Any:
    """`net.apply` in the policy's number format; logits and auxiliary logits come back as float32 (float64 stays)."""
    cast = {**variables, "params": policy.cast(variables["params"])}
    result = net.apply(cast, policy.cast(images), **how)
    output, changed = result if "mutable" in how else (result, {})
    widened = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), output)
    return widened, changed.get("batch_stats", {})


def keys(key: Any, step: jax.Array) -> tuple[Any, Any]:
    """The keys of one step's augmentation and of its dropout."""
    augment, dropout = jax.random.split(jax.random.fold_in(key, step))
    return augment, dropout


def train_step(
    net: Any,
    tx: optax.GradientTransformation,
    loss: Loss,
    key: jax.Array,
    state: State,
    batch: Batch,
    *,
    frozen: frozenset[str] = frozenset(),
    augment: Augment | None = None,
    policy: Policy = F32,
    axis_name: str | None = None,
    ema_decay: float = 0.999,
    accumulate: int = 1,
    remat: frozenset[str] = frozenset(),
    watch: frozenset[str] = frozenset(),
) -> tuple[State, dict[str, jax.Array]]:
    """One update: `(state, batch) -> (state, metrics)`, its randomness drawn from `key` and `state.step` alone.

    `batch`: {"image": [batch, height, width, channels], "label": int [batch] or, of soft labels, float [batch,
    classes]}, or what `augment` makes that of.
    `frozen`: layers whose parameters and statistics stay as they are, bit for bit, whatever `tx` does; they act as in
    inference and cost no gradient.
    `axis_name`: the mapped axis under `pmap` that shares the batch: gradients, statistics and metrics are averaged over
    it, and dropout masks are those of the whole batch; `augment` sees and draws for one device's part alone.
    `ema_decay`: of `state.ema` where there is one; it begins as (1 + step) / (10 + step), where that is smaller.

    `accumulate`: into so many equal parts the batch is divided, one after the other in memory. Their gradients are
    averaged into that of the whole batch; but batch normalisation sees one part at a time and its running statistics
    move with each, and dropout masks are drawn for each part.
    `remat`: layers to compute again for the gradient instead of keeping what is inside them.

    `metrics`: float32 scalars of this batch before the update: `loss` (with auxiliary heads), `error` (per cent; of
    soft labels, against the likeliest class), `grad_norm` (over the trained layers), and `grad_norm/NAME` of each layer
    that `watch` names.
    """
    augment_key, dropout_key = keys(key, state.step)
    if augment is not None:
        batch = augment(augment_key, batch)
    trained, held = split(state.params, frozen)

    def gradient(stats: Layers, image: jax.Array, label: jax.Array, dropout_key: Any) -> tuple[Layers, Tree]:
        """The statistics after these examples, and (gradient, metrics)."""

        def objective(trained: Layers) -> tuple[jax.Array, tuple[Output, Layers]]:
            output, moved = forward(
                net,
                {"params": merge(trained, held), "batch_stats": stats},
                image,
                policy,
                train=True,
                frozen=frozen,
                remat=remat,
                axis_name=axis_name,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            return loss(output, label).mean(), (output, moved)

        (value, (output, moved)), grads = jax.value_and_grad(objective, has_aux=True)(trained)
        classes = label if label.ndim == 1 else jnp.argmax(label, axis=-1)
        wrong = jnp.argmax(output.logits, axis=-1).astype(classes.dtype) != classes
        return moved, (grads, {"loss": value, "error": 100 * wrong.astype(value.dtype).mean()})

    if accumulate == 1:
        stats, (grads, metrics) = gradient(state.stats, batch["image"], batch["label"], dropout_key)
    else:
        stats, (grads, metrics) = _in_parts(gradient, state.stats, batch, dropout_key, accumulate)
    if axis_name is not None:
        grads, metrics, stats = jax.lax.pmean((grads, metrics, stats), axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)
    for name in sorted(watch):
        if name not in grads:
            raise unknown("trained layer", name, grads)
        metrics[f"grad_norm/{name}"] = optax.tree.norm(split(grads, frozenset({name}))[1])

    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        updates, opt_state = tx.update(grads, state.opt_state, trained)
    params = merge(optax.apply_updates(trained, updates), held)  # pyright: ignore[reportArgumentType]
    stats = merge(split(stats, frozen)[0], split(state.stats, frozen)[1])
    ema = state.ema
    if ema is not None:
        keep = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        new = {"params": params, "batch_stats": stats}
        ema = jax.tree.map(lambda old, new: old + (1 - keep).astype(old.dtype) * (new - old), ema, new)
    return State(state.step + 1, params, stats, opt_state, ema), metrics


def _in_parts(gradient: Callable[..., Any], stats: Layers, batch: Batch, key: Any, parts: int) -> tuple[Layers, Any]:
    """`gradient` of one part of the batch after the other: the last statistics, and the mean of the rest."""
    images, labels = batch["image"], batch["label"]
    if images.shape[0] % parts:
        raise CnnjaxError(f"a batch of {images.shape[0]} cannot be divided into {parts} equal parts")

    def part(carry: tuple[Layers, Any], i: Any, images: jax.Array, labels: jax.Array) -> tuple[Layers, Any]:
        # Every `parts`-th example, so that a device that has a share of the batch has one of every part.
        own = (x.reshape(-1, parts, *x.shape[1:])[:, i] for x in (images, labels))
        stats, total = carry
        stats, found = gradient(stats, *own, jax.random.fold_in(key, i))
        return stats, jax.tree.map(jnp.add, total, found)

    def one_by_one(carry: Any) -> Any:
        seen = images
        for i in range(parts):
            carry = part(carry, i, seen, labels)
            # XLA:CPU drops barriers before it plans the memory, but 0 · x is no constant: x may be infinite.
            last = sum(leaf.ravel()[0] for leaf in jax.tree.leaves(carry))
            seen = images + (0 * jnp.asarray(last)).astype(images.dtype)
        return carry

    def scanned(carry: Any) -> Any:
        return jax.lax.scan(lambda carry, i: (part(carry, i, images, labels), None), carry, jnp.arange(parts))[0]

    shapes = jax.eval_shape(gradient, stats, *(x[: len(x) // parts] for x in (images, labels)), key)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # XLA:CPU's convolutions lose their fast kernels inside a loop.
    stats, total = jax.lax.platform_dependent((stats, zeros), cpu=one_by_one, default=scanned)
    return stats, jax.tree.map(lambda leaf: leaf / parts, total)


def eval_step(
    net: Any,
    loss: Loss,
    variables: Mapping[str, Layers],
    batch: Batch,
    *,
    prepare: Augment | None = None,
    policy: Policy = F32,
    skip: frozenset[str] = frozenset(),
) -> dict[str, jax.Array]:
    """Sums over the examples of `batch` whose "mask" is true: `count`, `loss`, `correct`, `correct5`.

    `correct5` counts labels among the five largest logits (all, where there are fewer). `prepare`: as `augment` of
    `train_step`, with None for the key. `skip`: layers to bypass, for lesion studies.
    """
    if prepare is not None:
        batch = prepare(None, batch)
    output, _ = forward(net, variables, batch["image"], policy, train=False, skip=skip)
    label, mask = batch["label"], batch["mask"]
    best = jax.lax.top_k(output.logits, min(5, output.logits.shape[-1]))[1].astype(label.dtype)
    hit = (best == label[:, None]) & mask[:, None]
    return {
        "count": mask.sum(),
        "loss": jnp.where(mask, loss(output, label), 0.0).sum(),
        "correct": hit[:, 0].sum(),
        "correct5": hit.any(axis=1).sum(),
    }
