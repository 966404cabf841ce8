"""A network is an ordered tuple of named layers, and the names are the paper's.

`Chain` is that tuple as a Linen module: parameters and statistics are dicts keyed by layer name, so that freezing,
transplanting, plotting and removing layers are operations on names. `Concat` and `Residual` make one row out of
branches that are themselves tuples of named layers, so that the one idea holds every family.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models import ops
from cnnjax.models.layers import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class Layer:  # neither a Module nor a pytree, so that Linen does not name the module inside
    """A row of the table: `module` is called as `(x, train) -> x`."""

    name: str
    module: nn.Module


@dataclasses.dataclass(frozen=True)
class Aux:
    """A head that hangs off the output of layer `at`, in training only; it goes when that layer goes."""

    name: str
    at: str
    module: nn.Module


class Output(NamedTuple):
    """What every network returns.

    `logits`: what the last layer gives, [batch, classes]; an image for image-to-image chains; -distance for an RBF
    output. `aux`: the outputs of the `Aux` heads by name in training; {} otherwise.
    """

    logits: jax.Array
    aux: dict[str, jax.Array]


Rows = tuple[Layer, ...]


def rows(named: Mapping[str, nn.Module] | None = None, /, **more: nn.Module) -> Rows:
    """Named layers in order; a mapping first, for names such as "3x3_reduce" that are no identifiers."""
    return tuple(Layer(name, module) for name, module in {**(named or {}), **more}.items())


def run(parent: nn.Module, layers: Rows, x: jax.Array, train: bool) -> jax.Array:
    """`x` through `layers` as children of `parent`, each under its own name."""
    for layer in layers:
        x = layer.module.clone(parent=parent, name=layer.name)(x, train)  # pyright: ignore[reportCallIssue]
    return x


def _check(names: Iterable[str], modules: Iterable[Any]) -> None:
    names = list(names)
    for name in names:
        if names.count(name) > 1:
            raise CnnjaxError(f"two layers are named {name!r}; names must be unique")
        if not name or "/" in name:
            raise CnnjaxError(f"a layer cannot be named {name!r}: names are not empty and hold no '/'")
    for name, module in zip(names, modules, strict=True):
        if not isinstance(module, nn.Module):
            raise CnnjaxError(f"layer {name!r} is {module!r}, which is no module")
        try:
            hash(module)
        except TypeError:
            raise CnnjaxError(
                f"layer {name!r} has a field that is no plain data (write tuples, not lists):\n{module}"
            ) from None


class Chain(nn.Module):
    """A network: `layers` one after the other, and heads for training beside them."""

    layers: Rows
    aux: tuple[Aux, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        _check([row.name for row in (*self.layers, *self.aux)], [row.module for row in (*self.layers, *self.aux)])
        for head in self.aux:
            if head.at not in self.names:
                raise unknown(f"layer for the head {head.name!r}", head.at, self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names in order, heads not among them."""
        return tuple(layer.name for layer in self.layers)

    def __getitem__(self, name: str) -> nn.Module:
        """The module of the layer with this name."""
        for layer in self.layers:
            if layer.name == name:
                return layer.module
        raise unknown("layer", name, self.names)

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        frozen: frozenset[str] = frozenset(),
        skip: frozenset[str] = frozenset(),
        remat: frozenset[str] = frozenset(),
        axis_name: str | None = None,
    ) -> Output:
        """`images` [batch, height, width, channels] -> `Output`.

        `frozen` layers act as in inference also in training. `skip` passes a layer's input on as its output (a lesion
        of a trained network); it raises `CnnjaxError` for a layer whose output has another shape than its input.
        `remat` layers keep only their input for the gradient and are computed again there: the same numbers, with less
        memory and more time. `axis_name` is the mapped axis that shares the batch under `pmap`: dropout masks and
        batch statistics are then those of the whole batch.
        """
        with ops.batch_axis(axis_name):
            return self._run(images, train, frozen, skip, remat)

    @nn.nowrap
    def _run(self, images, train, frozen, skip, remat) -> Output:
        for name in (*frozen, *skip, *remat):
            if name not in self.names and name not in [head.name for head in self.aux]:
                raise unknown("layer", name, self.names)

        def call(layer: Layer, x: jax.Array, train: bool) -> jax.Array:
            def inside(parent: nn.Module, x: jax.Array) -> jax.Array:
                return run(parent, (layer,), x, train)

            return (nn.remat(inside) if layer.name in remat else inside)(self, x)

        x, aux = images, {}
        for layer in self.layers:
            try:
                y = call(layer, x, train and layer.name not in frozen | skip)
            except CnnjaxError as error:
                raise CnnjaxError(f"layer {layer.name}: {error}") from None
            if layer.name not in skip:
                x = y
            elif x.shape != y.shape:
                raise CnnjaxError(
                    f"layer {layer.name!r} cannot be skipped: it turns {x.shape[1:]} into {y.shape[1:]}, "
                    f"and what follows needs the latter"
                )
            for head in self.aux:
                if head.at == layer.name and (train or self.is_initializing()):
                    aux[head.name] = call(Layer(head.name, head.module), x, train and head.name not in frozen)
        return Output(x, aux if train else {})


def chain(named: Mapping[str, nn.Module] | None = None, /, *, aux: tuple[Aux, ...] = (), **more: nn.Module) -> Chain:
    """A network from its table: `chain(conv1=Conv(96, 11, stride=4), pool1=MaxPool(3, stride=2), …)`."""
    return Chain(rows(named, **more), aux)


class Block(nn.Module):
    """Rows one after the other as a single row: a head, a stage."""

    layers: Rows

    def __post_init__(self):
        super().__post_init__()
        _check([layer.name for layer in self.layers], [layer.module for layer in self.layers])

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return run(self, self.layers, x, train)


class Concat(nn.Module):
    """Branches side by side, their maps concatenated in order. An empty branch passes the input on."""

    branches: tuple[Rows, ...]

    def __post_init__(self):
        super().__post_init__()
        inner = [layer for branch in self.branches for layer in branch]
        _check([layer.name for layer in inner], [layer.module for layer in inner])

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return jnp.concatenate([run(self, branch, x, train) for branch in self.branches], axis=-1)


class Residual(nn.Module):
    """act(shortcut(x) + scale · body(x)); an empty shortcut is the identity (He et al. 2015, equations 1 and 2)."""

    body: Rows
    shortcut: Rows = ()
    act: str | None = "relu"
    scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        inner = (*self.body, *self.shortcut)
        _check([layer.name for layer in inner], [layer.module for layer in inner])
        if self.act is not None and self.act not in ACTIVATIONS:
            raise unknown("activation", self.act, [*ACTIVATIONS, None])

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = run(self, self.body, x, train)
        x = run(self, self.shortcut, x, train)
        if x.shape != y.shape:
            raise CnnjaxError(f"a shortcut of {x.shape[1:]} cannot be added to a body of {y.shape[1:]}")
        y = x + (y if self.scale == 1.0 else self.scale * y)
        return y if self.act is None else ACTIVATIONS[self.act](y)


def features(net: Chain, variables: Mapping, images: jax.Array, at: str | tuple[str, ...]) -> Any:
    """What the layer `at` gives at inference, e.g. [batch, 7, 7, 512] for "pool5" of VGG; a dict by name for several.

    "inception_4a/3x3" names a layer inside a block. Layers after the last one named are not computed.

    Raises `CnnjaxError` for a name that the network lacks.
    """
    wanted = {name: tuple(name.split("/")) for name in ((at,) if isinstance(at, str) else at)}
    for name, path in wanted.items():
        if path[0] not in net.names:
            raise unknown("layer", name, net.names)
    last = max(net.names.index(path[0]) for path in wanted.values())
    cut = Chain(net.layers[: last + 1])
    _, state = cut.apply(
        variables,
        images,
        capture_intermediates=lambda module, _: module.path in wanted.values(),
        mutable=["intermediates"],
    )
    found = {}
    for name, path in wanted.items():
        value: Any = state.get("intermediates", {})
        for key in (*path, "__call__"):
            if key not in value:
                raise unknown("layer", name, [*net.names])
            value = value[key]
        found[name] = value[0]
    return found[at] if isinstance(at, str) else found
