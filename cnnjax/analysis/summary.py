"""What a network is made of and what it costs, layer by layer: `python -m cnnjax.analysis.summary alexnet`.

Everything is counted on the abstract program (the reference forms): no array is made, so ResNet-1202 is as easy as
LeNet.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.analysis import program
from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import Chain
from cnnjax.models.ops import reference_forms


class Row(NamedTuple):
    """A layer: its output without the batch, its trainable scalars by kind, multiply-adds for one image.

    `depth`: layers with weights on the longest way through it, 3 for a bottleneck. `field` is the receptive field in
    input pixels, (rows, columns), None where a unit sees the whole image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int
    biases: int
    norms: int
    macs: int
    depth: int
    field: tuple[int, int] | None

    @property
    def params(self) -> int:
        """Trainable scalars; running statistics are not among them."""
        return self.weights + self.biases + self.norms


class Summary(NamedTuple):
    """The rows in order, training heads after the layer that they hang off, and what they sum to."""

    rows: tuple[Row, ...]
    params: int
    macs: int
    depth: int  # the number in "VGG-16", "ResNet-50"
    heads: frozenset[str]

    def __getitem__(self, name):  # pyright: ignore[reportIncompatibleMethodOverride]
        """The row of a layer by name, a field by position."""
        if isinstance(name, str):
            return next(row for row in self.rows if row.name == name)
        return tuple.__getitem__(self, name)


class _Traced(NamedTuple):
    output: tuple[int, ...]
    weights: int
    biases: int
    norms: int
    macs: int
    depth: int
    reach: Any


@functools.lru_cache(maxsize=4096)
def _trace(module: nn.Module, shape: tuple[int, ...], reach: Any) -> _Traced:
    """One layer on one image of `shape`. Cached: deep networks repeat their blocks."""

    def call(key, image):
        return module.init_with_output({"params": key}, image, False)

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    with reference_forms(True):
        jaxpr, (output, variables) = jax.make_jaxpr(call, return_shape=True)(jax.random.key(0), image)
    found = program.cost(jaxpr, 1, reach)
    normalised = {path[:-1] for path, _ in _leaves(variables.get("batch_stats", {}))}
    kinds = {"weights": 0, "biases": 0, "norms": 0}
    for path, leaf in _leaves(variables.get("params", {})):
        kind = "norms" if path[:-1] in normalised else "biases" if path[-1] == "bias" else "weights"
        kinds[kind] += leaf.size
    return _Traced(output.shape[1:], **kinds, **found._asdict())


def _leaves(tree) -> list[tuple[tuple[str, ...], Any]]:
    return [(tuple(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def summarise(net: Chain, image_shape: tuple[int, int, int]) -> Summary:
    """The rows of `net` on images [height, width, channels]. Raises `CnnjaxError` naming the layer that they do not
    fit.
    """
    rows, heads = [], {head.name for head in net.aux}

    def add(name, module, shape, reach):
        try:
            traced = _trace(module, shape, reach)
        except CnnjaxError as error:
            raise CnnjaxError(f"layer {name}: {error}") from None
        field = None if traced.reach is None else (traced.reach[0].field, traced.reach[1].field)
        counts = (traced.weights, traced.biases, traced.norms, traced.macs, traced.depth)
        rows.append(Row(name, type(module).__name__, traced.output, *counts, field))
        return traced.output, traced.reach

    shape, reach = tuple(image_shape), program.PIXEL
    for layer in net.layers:
        shape, reach = add(layer.name, layer.module, shape, reach)
        for head in net.aux:
            if head.at == layer.name:
                add(head.name, head.module, shape, reach)
    params, macs = sum(row.params for row in rows), sum(row.macs for row in rows)
    depth = sum(row.depth for row in rows if row.name not in heads)
    return Summary(tuple(rows), params, macs, depth, frozenset(heads))


def activation_bytes(net: Chain, image_shape: tuple[int, int, int]) -> int:
    """Bytes of activations that one float32 image's backward pass needs, counted on the program: what reverse mode
    keeps.

    Each layer's saved inputs, masks and statistics as the reference forms save them; parameters are not among them.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(lambda key, x: net.init({"params": key}, x), jax.random.key(0), image)

    def kept(variables, x):
        stats = {name: tree for name, tree in variables.items() if name != "params"}

        def forward(params):
            rngs = {"dropout": jax.random.key(0)}
            return net.apply({"params": params, **stats}, x, train=True, mutable=[*stats], rngs=rngs)[0]

        held = {id(leaf) for leaf in jax.tree.leaves(variables)}
        found = {id(leaf): leaf for leaf in jax.tree.leaves(jax.vjp(forward, variables["params"])[1])}
        return [leaf for name, leaf in found.items() if name not in held]

    with reference_forms(True):
        saved = jax.eval_shape(kept, variables, image)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in saved)


def table(summary: Summary, title: str):
    """The summary as a rich table."""
    from rich.table import Table

    result = Table(title=title, caption="multiply-adds and receptive field (pixels) for one image")
    for column in ("layer", "kind"):
        result.add_column(column)
    for column in ("output", "parameters", "multiply-adds", "field"):
        result.add_column(column, justify="right")
    for row in summary.rows:
        size = "×".join(map(str, row.output))
        field = "all" if row.field is None else "×".join(map(str, row.field))
        name = f"  {row.name} (training)" if row.name in summary.heads else row.name
        result.add_row(
            name, row.kind, size, f"{row.params:,}" if row.params else "", f"{row.macs:,}" if row.macs else "", field
        )
    result.add_section()
    result.add_row("total", "", "", f"{summary.params:,}", f"{summary.macs:,}", "")
    return result


def main(name: str, /, input: tuple[int, int, int] | None = None) -> None:
    """Print a network's layers: output (height × width × channels), parameters, multiply-adds, receptive field.

    Args:
        name: A network of the catalogue, such as alexnet, vgg16 or resnet50.
        input: Height, width and channels of the images; what the network was made for by default.
    """
    from rich.console import Console

    from cnnjax.models.catalog import entry

    made = entry(name)
    shape = made.input if input is None else input
    summary = summarise(made.make(), shape)
    console = Console()
    if not console.is_terminal:  # a pipe or a file: as wide as the table needs
        console = Console(width=120)
    console.print(table(summary, f"{name} on {'×'.join(map(str, shape))}"))


if __name__ == "__main__":
    import tyro

    from cnnjax.errors import exit_with_error

    with exit_with_error():
        tyro.cli(main)
