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
) -> tuple[State, dict[str, jax.Array]]:
    """One update: `(state, batch) -> (state, metrics)`, its randomness drawn from `key` and `state.step` alone.

    `batch`: {"image": [batch, height, width, channels], "label": int [batch] or, of soft labels, float [batch,
    classes]}, or what `augment` makes that of.
    `frozen`: layers whose parameters and statistics stay as they are, bit for bit, whatever `tx` does; they act as in
    inference and cost no gradient.
    `axis_name`: the mapped axis under `pmap` over whose devices gradients, statistics and metrics are averaged.
    `ema_decay`: of `state.ema` where there is one; it begins as (1 + step) / (10 + step), where that is smaller.

    `metrics`: float32 scalars of this batch before the update: `loss` (with auxiliary heads), `error` (per cent; of
    soft labels, against the likeliest class), and `grad_norm` (over the trained layers).
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    if augment is not None:
        batch = augment(augment_key, batch)
    trained, held = split(state.params, frozen)

    def objective(trained: Layers) -> tuple[jax.Array, tuple[Output, Layers]]:
        output, stats = forward(
            net,
            {"params": merge(trained, held), "batch_stats": state.stats},
            batch["image"],
            policy,
            train=True,
            frozen=frozen,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return loss(output, batch["label"]).mean(), (output, stats)

    (value, (output, stats)), grads = jax.value_and_grad(objective, has_aux=True)(trained)
    label = batch["label"] if batch["label"].ndim == 1 else jnp.argmax(batch["label"], axis=-1)
    wrong = jnp.argmax(output.logits, axis=-1).astype(label.dtype) != label
    metrics = {"loss": value, "error": 100 * wrong.astype(value.dtype).mean()}
    if axis_name is not None:
        grads, metrics, stats = jax.lax.pmean((grads, metrics, stats), axis_name)
    metrics["grad_norm"] = optax.tree.norm(grads)

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
