"""Our network, and the same one as a user of Flax writes it: `nn.Conv`, `nn.BatchNorm`, `nn.max_pool`."""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cnnjax.models import ops, surgery
from cnnjax.models.chain import Chain
from cnnjax.train.losses import cross_entropy
from cnnjax.train.state import State
from cnnjax.train.step import Policy, forward, train_step
from experiments.peers import LEARNING_RATE, MOMENTUM, Running, Task, explicit, kept_programs, through


class Plain(nn.Module):
    """A chain's rows as Flax's own layers."""

    net: Chain
    train: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return through(self, self.net.layers, x.astype(self.dtype)).astype(jnp.float32)

    def conv(self, module, x, path):
        size, stride = ops.pair(module.kernel), ops.pair(module.stride)
        return nn.Conv(
            module.features, size, stride, explicit(x.shape[1:3], module), feature_group_count=module.groups,
            use_bias=module.bias, dtype=self.dtype, name=".".join(path),
        )(x)  # fmt: skip

    def dense(self, module, x, path):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(module.features, use_bias=module.bias, dtype=self.dtype, name=".".join(path))(x)

    def norm(self, norm, x, path):
        return nn.BatchNorm(
            not self.train, momentum=norm.momentum, epsilon=norm.epsilon, use_scale=norm.scale, dtype=self.dtype,
            name=".".join(path),
        )(x)  # fmt: skip

    def max_pool(self, module, x):
        return nn.max_pool(x, ops.pair(module.window), ops.pair(module.stride), explicit(x.shape[1:3], module))

    def avg_pool(self, module, x):
        padding, window, stride = explicit(x.shape[1:3], module), ops.pair(module.window), ops.pair(module.stride)
        return nn.avg_pool(x, window, stride, padding, count_include_pad=module.count_padding)

    def global_pool(self, x):
        return x.mean((1, 2))

    def lrn(self, module, alpha, x):
        squares = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, module.n), (1, 1, 1, 1), "SAME")
        return x / (module.k + alpha * squares) ** module.beta

    def activation(self, act, x):
        return {"relu": nn.relu, "tanh": nn.tanh}[act](x)

    def dropout(self, rate, x):
        return nn.Dropout(rate, deterministic=not self.train)(x)

    def concat(self, parts):
        return jnp.concatenate(parts, axis=-1)


def _flat(tree: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Our tree with one level of names, "conv2_1.conv1" and so on, as `Plain` has it."""
    own = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    flat = {".".join(path): own} if own else {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, (*path, name))
    return flat


def compile_twice(lower: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `lower().compile()` gives, and the seconds it takes without and with the compilation cache's file."""
    seconds = []
    with kept_programs():
        for _ in range(2):
            jax.clear_caches()
            begun = time.perf_counter()
            compiled = lower().compile()
            seconds.append(time.perf_counter() - begun)
    return compiled, seconds[0], seconds[1]


def build(task: Task) -> Running:
    """variant: "" for ours, "reference" for ours on the reference forms, "flax" for plain Flax."""
    with ops.reference_forms(task.variant == "reference"):
        return _train(task) if task.train else _infer(task)


def _programs(task: Task) -> tuple[dict[str, Any], Callable, Callable]:
    """The variables, the forward pass and the training step, all of them pure functions."""
    policy, tx, key = Policy(task.dtype), optax.sgd(LEARNING_RATE, MOMENTUM), jax.random.key(0)
    if task.variant != "flax":
        step = functools.partial(train_step, task.net, tx, cross_entropy(), key, policy=policy)
        return dict(task.weights), lambda net, v, x: forward(net, v, x, policy)[0].logits, step
    plain = functools.partial(Plain, task.net, dtype=jnp.dtype(task.dtype))

    def step(state: State, batch):
        def objective(params):
            logits, changed = plain(train=True).apply(
                {"params": params, "batch_stats": state.stats},
                batch["image"],
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.fold_in(key, state.step)},
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, changed.get("batch_stats", {})

        (loss, stats), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, stats, opt_state), {"loss": loss}

    variables = {name: _flat(dict(tree)) for name, tree in task.weights.items()}
    return variables, lambda net, v, x: plain(train=False).apply(v, x), step


def _parameters(variables: dict[str, Any]) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _infer(task: Task) -> Running:
    variables, apply, _ = _programs(task)
    parameters, net = _parameters(variables), task.net
    if task.variant != "flax":
        net, variables = surgery.fold(net, variables)
    variables, images = jax.device_put((variables, task.images))
    run, cold, warm = compile_twice(lambda: jax.jit(functools.partial(apply, net)).lower(variables, images))

    def repeat(n: int) -> None:
        jax.block_until_ready([run(variables, images) for _ in range(n)])

    return Running(parameters, np.asarray(run(variables, images)), (), repeat, cold, warm)


def _train(task: Task) -> Running:
    variables, apply, step = _programs(task)
    parameters = _parameters(variables)
    images, labels = jax.device_put((task.images, task.labels))
    logits = np.asarray(jax.jit(functools.partial(apply, task.net))(variables, images))
    tx = optax.sgd(LEARNING_RATE, MOMENTUM)
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = jax.device_put(State(jnp.zeros((), jnp.int32), params, stats, tx.init(params)))
    batch = {"image": images, "label": labels}
    run, cold, warm = compile_twice(lambda: jax.jit(step, donate_argnums=0).lower(state, batch))
    losses = []

    def repeat(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, metrics = run(state, batch)
            losses[2:] = [metrics["loss"]] if len(losses) >= 2 else []
            if len(losses) < 2:
                losses.append(metrics["loss"])
        jax.block_until_ready(state)

    repeat(2)
    return Running(parameters, logits, tuple(map(float, losses[:2])), repeat, cold, warm)


def matrix_product(size: int = 2048) -> tuple[Callable[[int], None], float]:
    """Products of two float32 matrices: a function that does n of them, and the operations of one."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    run = jax.jit(jnp.matmul)
    run(a, b).block_until_ready()
    return lambda n: jax.block_until_ready([run(a, b) for _ in range(n)]) and None, 2.0 * size**3
