"""Surgery: functions from network to network. No architecture has a flag for an ablation.

Layers that are left keep their names, and therefore their weights, their place in a checkpoint and, since Linen folds
the name into the initialiser's key, the very same initial values: an ablation is a paired comparison.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Aux, Chain, Layer
from cnnjax.models.layers import (
    ACTIVATIONS,
    INITS,
    LRN,
    Activation,
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    LocalConv,
    Norm,
    Weighted,
)


def _known(net: Chain, names) -> None:
    for name in names:
        if name not in net.names:
            raise unknown("layer", name, net.names)


def without(net: Chain, *names: str) -> Chain:
    """The network with the named layers removed, and the heads that hung off them."""
    _known(net, names)
    kept = tuple(layer for layer in net.layers if layer.name not in names)
    if not kept:
        raise CnnjaxError("no layer is left")
    return Chain(kept, tuple(head for head in net.aux if head.at not in names))


def until(net: Chain, name: str) -> Chain:
    """The network up to and including the named layer."""
    _known(net, [name])
    cut = net.names.index(name) + 1
    return Chain(net.layers[:cut], tuple(head for head in net.aux if head.at in net.names[:cut]))


def replace(net: Chain, **modules: nn.Module) -> Chain:
    """The network with other modules in the places of the named layers: `replace(net, pool5=AvgPool(3, 2))`."""
    _known(net, modules)
    return dataclasses.replace(
        net, layers=tuple(Layer(layer.name, modules.get(layer.name, layer.module)) for layer in net.layers)
    )


def with_features(net: Chain, **widths: int) -> Chain:
    """The network with other numbers of maps or units: `with_features(net, conv3=512, fc6=2048)`."""
    _known(net, widths)
    for name in widths:
        if not hasattr(net[name], "features"):
            raise CnnjaxError(
                f"layer {name!r} is a {type(net[name]).__name__} and has no width\n"
                f"layers with one: {', '.join(n for n in net.names if hasattr(net[n], 'features'))}"
            )
    return replace(net, **{name: net[name].clone(features=width) for name, width in widths.items()})


def with_head(net: Chain, classes: int) -> Chain:
    """The network for another number of classes: its last layer with weights, and that of every head, made anew."""
    return _edit_heads(net, lambda module: module.clone(features=classes))


def with_width(net: Chain, factor: float) -> Chain:
    """Every layer's width times `factor` (rounded, kept a multiple of its groups), those of the heads excepted.

    For lab scale and for tests: the same network with fewer maps.
    """
    kept: list[int] = []

    def scale(module):
        if not hasattr(module, "features"):
            return module
        groups = getattr(module, "groups", 1)
        return module.clone(features=max(1, round(module.features * factor / groups)) * groups)

    def remember(module):
        kept.append(module.features)
        return module

    _edit_heads(net, remember)
    return _edit_heads(map_modules(net, scale), lambda module: module.clone(features=kept.pop(0)))


def _edit_heads(net: Chain, edit: Callable[[Any], nn.Module]) -> Chain:
    """`edit` applied to the last module with a width, and to that of every training head."""

    def visit(rows):
        for i in reversed(range(len(rows))):
            module = rows[i].module
            if hasattr(module, "features"):
                edited = edit(module)
            elif getattr(module, "layers", None):
                edited = module.clone(layers=visit(module.layers))
            else:
                continue
            return (*rows[:i], dataclasses.replace(rows[i], module=edited), *rows[i + 1 :])
        raise CnnjaxError("the network has no layer with a width that could be its head")

    return Chain(visit(net.layers), tuple(visit((head,))[0] for head in net.aux))


def map_modules(net: Chain, edit: Callable[[nn.Module], nn.Module]) -> Chain:
    """`edit` applied to every module, those inside blocks and heads first."""

    def visit(value: Any) -> Any:
        if isinstance(value, (Layer, Aux)):
            return dataclasses.replace(value, module=visit(value.module))
        if isinstance(value, tuple):
            return tuple(visit(item) for item in value)
        if isinstance(value, nn.Module):
            held = {
                f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in ("parent", "name")
            }
            inner = {name: visit(field) for name, field in held.items() if isinstance(field, tuple)}
            changed = {name: field for name, field in inner.items() if field != held[name]}
            return edit(value.clone(**changed) if changed else value)
        return value

    return Chain(visit(net.layers), visit(net.aux))


def _with_field(net: Chain, field: str, value: Any) -> Chain:
    """Another value for a field wherever it has one (None stays None)."""
    return map_modules(net, lambda m: m if getattr(m, field, None) is None else m.clone(**{field: value}))


def with_activation(net: Chain, act: str) -> Chain:
    """Another activation wherever there is one; layers without any, such as the last, stay without."""
    if act not in ACTIVATIONS:
        raise unknown("activation", act, ACTIVATIONS)
    return _with_field(net, "act", act)


def with_init(net: Chain, init: str) -> Chain:
    """Another initialiser of the weights everywhere."""
    if init not in INITS:
        raise unknown("initialiser", init, INITS)
    return _with_field(net, "weight_init", init)


def transplant(donor: Mapping[str, Any], recipient: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
    """`recipient` with the named layers taken from `donor`; both are parameters, or statistics, by layer name.

    What is taken is copied, so that training the one leaves the other. Raises `CnnjaxError` with a table of what does
    not fit, and takes nothing then.
    """
    layers = tuple(layers)
    different = [row for name in layers for row in _differences(name, donor.get(name), recipient.get(name))]
    if different:
        more = [f"  and {len(different) - 3} more"] if len(different) > 3 else []
        raise CnnjaxError("\n".join(["the donor's layers do not fit the recipient:", *different[:3], *more]))
    return {**recipient, **{name: jax.tree.map(jnp.copy, donor[name]) for name in layers}}


def _differences(layer: str, donor: Any, recipient: Any) -> list[str]:
    have, want = ({} if tree is None else _shapes(layer, tree) for tree in (donor, recipient))
    if not have or not want:
        nobody = " and ".join(who for who, shapes in {"donor": have, "recipient": want}.items() if not shapes)
        return [f"  {layer}: not in the {nobody}"]
    return [
        f"  {name}: donor {have.get(name, 'none')}, recipient {want.get(name, 'none')}"
        for name in dict.fromkeys((*want, *have))
        if have.get(name) != want.get(name)
    ]


def _shapes(layer: str, tree: Any) -> dict[str, str]:
    """Every leaf's shape, by its name, as "3×3×64×128" or, of a scalar, "scalar"."""
    return {
        ".".join([layer, jax.tree_util.keystr(path, simple=True, separator=".")]): "×".join(map(str, leaf.shape))
        or "scalar"
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


# What may follow a fully connected layer that becomes a convolution: rows that treat every position alike.
POSITIONWISE = (Activation, BatchNorm, Dropout, LRN)
WEIGHTED_FIELDS = tuple(field.name for field in dataclasses.fields(Weighted) if field.name not in ("parent", "name"))


def fully_convolutional(
    net: Chain, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> tuple[Chain, dict[str, Any]]:
    """The network for images of any size, and its variables: fully connected layers as convolutions of their weights.

    A layer that reads a 7×7 map becomes a 7×7 convolution, those after it 1×1 ones; the class map that results is
    averaged by a last row, "average" (Simonyan & Zisserman 2014, section 3.2). `image_shape`: (height, width,
    channels) that the weights were made for; on such images the network gives what it gave before. A network that
    averages its features, such as GoogLeNet and ResNet, takes any size as it is.

    Raises `CnnjaxError` where a row behind a fully connected one is none that has a convolutional form.
    """
    layers, params = [], dict(variables["params"])
    area = None  # the map that a vector stands for, behind the first fully connected layer
    for layer, shape in zip(net.layers, _input_shapes(net, variables, image_shape), strict=True):
        module = layer.module
        if isinstance(module, Flatten) and len(shape) == 3:
            area = shape
        elif isinstance(module, Dense) and (area or len(shape) == 3):
            height, width, channels = area or shape
            fields = {field: getattr(module, field) for field in WEIGHTED_FIELDS}
            layers.append(Layer(layer.name, Conv(features=module.features, kernel=(height, width), **fields)))
            kernel = params[layer.name]["kernel"].reshape(height, width, channels, module.features)
            params[layer.name] = {**params[layer.name], "kernel": kernel}
            area = (1, 1, module.features)
        elif area is None or isinstance(module, POSITIONWISE):
            layers.append(layer)
        else:
            raise CnnjaxError(f"layer {layer.name!r}, a {type(module).__name__}, has no convolutional form")
    if area is None:
        return net, dict(variables)
    rows = (*layers, Layer("average", GlobalAvgPool()))
    return dataclasses.replace(net, layers=rows), {**variables, "params": params}


def _input_shapes(net: Chain, variables: Mapping[str, Any], image_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """What every row of a network reads, without the batch; nothing is computed."""

    def apply(images):
        return net.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])[1]

    try:
        found = jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))["intermediates"]
    except flax.errors.ScopeParamShapeError as error:
        raise CnnjaxError(f"the weights are not made for images of shape {image_shape}") from error
    return [image_shape, *(found[name]["__call__"][0].shape[1:] for name in net.names[:-1])]


LINEAR = (Conv, ConvTranspose, Dense, LocalConv)


def fold(net: Chain, variables: Mapping[str, Any]) -> tuple[Chain, dict[str, Any]]:
    """The network for inference, and its variables: batch normalisation folded into the weights before it.

    γ · (w x + b - mean) / √(variance + ε) + β is a layer with other weights and another bias, and costs nothing. Folded
    is the normalisation that is a field of a layer, and the row behind a layer without activation, in blocks as well;
    such a row is gone. A normalisation that follows something else, as pre-activation has it, stays. So do the names of
    the other layers. Heads for training go.
    """
    layers, params, stats = _fold_rows(net.layers, variables["params"], variables.get("batch_stats", {}))
    return Chain(layers), {"params": params, **({"batch_stats": stats} if stats else {})}


Scope = dict[str, Any]  # parameters or statistics by layer name


def _fold_rows(rows: tuple[Layer, ...], params: Mapping, stats: Mapping) -> tuple[tuple[Layer, ...], Scope, Scope]:
    """`fold` of rows in a row; of `params` and `stats` what is theirs."""
    kept: list[Layer] = []
    weights, statistics = {}, {}
    for name, module in ((row.name, row.module) for row in rows):
        own, seen = params.get(name, {}), stats.get(name, {})
        before = kept[-1] if kept else None
        if isinstance(module, BatchNorm) and before and _is_linear(before.module):
            kept[-1], weights[before.name] = _absorb(before, weights[before.name], module.norm, own, seen)
            continue
        row = Layer(name, module)
        if type(module) in LINEAR and module.norm is not None:
            bare = Layer(name, module.clone(norm=None))
            row, own = _absorb(bare, own, module.norm, own["norm"], seen["norm"])
            seen = {}
        elif not isinstance(module, Weighted):
            row, own, seen = _fold_inside(row, own, seen)
        kept.append(row)
        weights |= {name: own} if own else {}
        statistics |= {name: seen} if seen else {}
    return tuple(kept), weights, statistics


def _fold_inside(row: Layer, params: Mapping, stats: Mapping) -> tuple[Layer, Scope, Scope]:
    """`fold` of every field of a block that holds rows, or branches of rows."""
    fields = {f.name: getattr(row.module, f.name) for f in dataclasses.fields(row.module) if f.name != "parent"}
    folded, weights, statistics = {}, {}, {}

    def visit(rows: tuple[Layer, ...]) -> tuple[Layer, ...]:
        layers, own, seen = _fold_rows(rows, params, stats)
        weights.update(own)
        statistics.update(seen)
        return layers

    for name, value in fields.items():
        if isinstance(value, tuple) and value and all(isinstance(item, Layer) for item in value):
            folded[name] = visit(value)
        elif isinstance(value, tuple) and any(isinstance(item, tuple) and item for item in value):
            branches = [item for item in value if isinstance(item, tuple)]
            if all(isinstance(item, Layer) for branch in branches for item in branch):
                folded[name] = tuple(visit(branch) for branch in branches)
    if not folded:
        return row, dict(params), dict(stats)
    return Layer(row.name, row.module.clone(**folded)), weights, statistics


def _is_linear(module: nn.Module) -> bool:
    return type(module) in LINEAR and module.norm is None and module.act is None


def _absorb(row: Layer, weights: Mapping, norm: Norm, params: Mapping, stats: Mapping) -> tuple[Layer, Scope]:
    """A layer without normalisation, and its weights, that does what it did with this one behind it."""
    factor = jax.lax.rsqrt(stats["var"] + norm.epsilon)
    factor = factor * params["scale"] if norm.scale else factor
    kernel = weights["kernel"] * factor
    bias = (weights.get("bias", jnp.zeros(())) - stats["mean"]) * factor + params["bias"]
    if isinstance(row.module, LocalConv):  # one bias a position
        bias = jnp.broadcast_to(bias, (*kernel.shape[:2], bias.shape[-1]))
    return Layer(row.name, row.module.clone(bias=True)), {"kernel": kernel, "bias": bias}
