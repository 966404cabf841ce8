"""Devices: where state and batch lie, and how the pure step of `step.py` is compiled for them.

One device     `jit`, and nothing else.
Several        `jit` over a mesh, on which every batch is spread and the state is replicated; the compiler does the
               rest. This is the default. Processes that have been joined by `jax.distributed` share one mesh, and each
               reads the examples of its own devices alone.
`pmap`         one program per device of this process, with the means over devices written out in the step: the older
               way, which many code bases still have.

All give the numbers of one device. Batch normalisation sees the whole batch, not each device's part of it, unless a
`Norm` says `per_device` (which means something under `pmap` alone), and augmentation and dropout draw for the whole
batch.

On an accelerator several steps are one compiled loop, and several runs are one batched program (`vmap`); XLA:CPU's
convolutions lose their fast kernels in both, and are 3 to 20 times slower there, while a call costs microseconds.
"""

import dataclasses
import functools
import itertools
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cnnjax.errors import CnnjaxError
from cnnjax.train.state import State, Tree
from cnnjax.train.step import Batch, keys, train_step

AXIS = "data"
CHUNK = 100
"""Steps in one compiled loop, at most: a run that is asked to stop finishes them."""
STATIC = ("frozen", "augment", "policy", "ema_decay", "accumulate", "remat", "watch")


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is launched.

    kind: "jit" or "pmap". devices: how many share each batch; None is all that there are, and on a CPU one, since more
    of them share the same cores. optimiser: "sharded" spreads the optimiser's state over the devices, which then each
    have a part of it (Rajbhandari et al. 2020, "ZeRO", stage 1). accelerator: whether steps and runs are put together;
    None is "if there is one".
    """

    kind: Literal["jit", "pmap"] = "jit"
    devices: int | None = None
    optimiser: Literal["replicated", "sharded"] = "replicated"
    accelerator: bool | None = None

    @property
    def accelerated(self) -> bool:
        """Whether several steps are one compiled loop, and several runs one program."""
        return jax.default_backend() != "cpu" if self.accelerator is None else self.accelerator

    @property
    def count(self) -> int:
        """The number of devices. Raises `CnnjaxError` where there are not so many."""
        there = jax.device_count()
        if jax.process_count() > 1:
            if self.devices not in (None, there):
                raise CnnjaxError(f"--devices is {self.devices}; several processes use all of theirs, {there}")
            if self.kind == "pmap":
                raise CnnjaxError("pmap drives the devices of one process; with several, take --parallel jit")
            return there
        wanted = self.devices or (1 if jax.default_backend() == "cpu" else there)
        if not 1 <= wanted <= there:
            raise CnnjaxError(f"--devices is {wanted}; there are {there} ({jax.devices()[0].device_kind})")
        if self.kind == "pmap" and self.optimiser == "sharded":
            raise CnnjaxError("pmap keeps all of the state on every device; for a sharded one, take --parallel jit")
        return wanted

    def check(self, batch: int, accumulate: int) -> None:
        """Raises `CnnjaxError` where a batch cannot be shared equally."""
        if batch % (self.count * accumulate):
            what = f"{self.count} devices" + (f" × {accumulate} parts" if accumulate > 1 else "")
            raise CnnjaxError(f"a batch of {batch} cannot be shared equally by {what}")

    @property
    def mesh(self) -> Mesh | None:
        """The devices that share a batch; None where there is one, which needs no mesh."""
        return None if self.count == 1 and self.kind == "jit" else _first(self.count)


ALL = Launch()
ONE = Launch(devices=1)


def data_mesh(devices: Any = None) -> Mesh:
    """All devices, or those given, in one row."""
    devices = jax.devices() if devices is None else devices
    # The newer default, Explicit, breaks Linen's dropout.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


@functools.cache  # every step asks for it
def _first(count: int) -> Mesh:
    return data_mesh(jax.devices()[:count])


def shardings(mesh: Mesh, state: State, optimiser: str = "replicated") -> State:
    """Where each leaf of a state lies: everywhere, but of a "sharded" optimiser's on each device an equal part.

    A leaf is divided along its first axis that can be divided equally, and lies everywhere where none can.
    """
    whole = NamedSharding(mesh, P())

    def part(leaf: Any) -> NamedSharding:
        axis = next((i for i, size in enumerate(leaf.shape) if size and size % mesh.size == 0), None)
        return whole if axis is None else NamedSharding(mesh, P(*[None] * axis, AXIS))

    placed = jax.tree.map(lambda _: whole, state)
    return placed._replace(opt_state=jax.tree.map(part, state.opt_state)) if optimiser == "sharded" else placed


def place(launch: Launch, state: State) -> State:
    """`state` on its devices, committed there, as a restored one is: else a resumed run would be compiled anew."""
    mesh = launch.mesh
    if mesh is None:
        return jax.device_put(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return jax.tree.map(_put, state, shardings(mesh, state, launch.optimiser))


def _put(value: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, placed."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    value = np.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def replicate(launch: Launch, tree: Tree) -> Tree:
    """`tree` on every device."""
    mesh = launch.mesh
    return tree if mesh is None else jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, P())), tree)


def rows(launch: Launch, batch: int) -> slice:
    """The part of every batch that this process has to read."""
    mesh = launch.mesh
    if mesh is None or jax.process_count() == 1:
        return slice(0, batch)
    own = NamedSharding(mesh, P(AXIS)).addressable_devices_indices_map((batch,)).values()
    bounds = sorted(index[0].indices(batch)[:2] for index in own if index is not None)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds)), bounds
    return slice(bounds[0][0], bounds[-1][1])


def share(launch: Launch, tree: Tree, axis: int = 0) -> Tree:
    """What this process has read of a batch as part of the whole batch, spread over the devices along `axis`."""
    mesh = launch.mesh
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def agreed(signals: list[int], done: int) -> int | None:
    """The signal after which to stop, if any, in all processes at the same step: they ask each other every 10 steps."""
    heard = signals[0] if signals else 0
    if jax.process_count() > 1:
        if done % 10:
            return None
        from jax.experimental import multihost_utils

        heard = int(multihost_utils.process_allgather(np.int32(heard)).max())
    return heard or None


def advance(
    launch: Launch, net: Any, tx: Any, loss: Any, key: Any, state: State, batch: Batch, *, steps: int, **how: Any
) -> tuple[State, dict[str, jax.Array]]:
    """`train_step`, compiled and donated, so many times: the new state, and the metrics, [steps] of each.

    `batch`: what one step takes, but "index", where it is there, is [steps, batch]. Several runs at once: `key`,
    `state` and "index" ([steps, runs, batch]) have an axis for them, and the metrics are [steps, runs].
    """
    if launch.kind == "pmap":
        return _pmapped(launch, net, tx, loss, key, state, batch, **how)
    mesh = launch.mesh
    placed = None if mesh is None else (mesh, launch.optimiser)
    several = bool(key.ndim)
    if steps > 1 or several:
        return _scanned(net, tx, loss, key, state, batch, placed=placed, several=several, **how)
    return one_step(net, tx, loss, key, state, batch, placed=placed, **how)


def _placed(placed: tuple[Mesh, str] | None, state: State) -> State:
    """`state` where it was before, which the compiler would otherwise be free to change."""
    return state if placed is None else jax.lax.with_sharding_constraint(state, shardings(placed[0], state, placed[1]))


def _summed(placed: tuple[Mesh, str] | None, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on gradients that every device has whole.

    Else the compiler divides the gradients as the optimiser's state is, and with them the work of making them: every
    device would need activations of the whole batch.
    """
    if placed is None:
        return tx

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates = jax.lax.with_sharding_constraint(updates, NamedSharding(placed[0], P()))
        return tx.update(updates, state, params)

    return optax.GradientTransformation(tx.init, update)


def _only_step(batch: Batch) -> Batch:
    """The batch of a span of one step."""
    return {**batch, "index": batch["index"][0]} if "index" in batch else batch


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames=(*STATIC, "placed"), donate_argnums=4)
def one_step(net, tx, loss, key, state, batch, *, placed, **how):
    """`train_step`, compiled. `placed`: (mesh, where the optimiser's state is, see `Launch`), None for one device."""
    state, metrics = train_step(net, _summed(placed, tx), loss, key, state, _only_step(batch), **how)
    return _placed(placed, state), jax.tree.map(lambda leaf: leaf[None], metrics)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames=(*STATIC, "placed", "several"), donate_argnums=4)
def _scanned(net, tx, loss, key, state, batch, *, placed, several, **how):
    resident = {name: value for name, value in batch.items() if name != "index"}

    def one(key, state, index):
        return train_step(net, _summed(placed, tx), loss, key, state, {**resident, "index": index}, **how)

    def step(state, index):
        state, metrics = (jax.vmap(one) if several else one)(key, state, index)
        return _placed(placed, state), metrics

    return jax.lax.scan(step, state, batch["index"])


def _pmapped(launch, net, tx, loss, key, state, batch, *, augment, **how):
    """The images are made by one program for the whole batch, so that what it draws is what one device draws."""
    mesh = launch.mesh
    ready = _prepared(mesh, augment, key, state.step, batch)
    state, metrics = _mapped(
        net, tx, loss, tuple(sorted({**how, "axis_name": AXIS}.items())), tuple(mesh.devices.flat)
    )(key, state, ready)
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepared(mesh, augment, key, step, batch):
    batch = _only_step(batch)
    if augment is not None:
        batch = augment(keys(key, step)[0], batch)
    split = {name: value.reshape(mesh.size, -1, *value.shape[1:]) for name, value in batch.items()}
    return jax.lax.with_sharding_constraint(split, NamedSharding(mesh, P(AXIS)))


@functools.cache
def _mapped(net, tx, loss, how, devices):
    step = functools.partial(train_step, net, tx, loss, **dict(how))
    return jax.pmap(step, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices, donate_argnums=1)
