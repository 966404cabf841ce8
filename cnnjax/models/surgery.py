"""Surgery: functions from network to network. No architecture has a flag for an ablation.

Layers that are left keep their names, and therefore their weights, their place in a checkpoint and, since Linen folds
the name into the initialiser's key, the very same initial values: an ablation is a paired comparison.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Aux, Chain, Layer
from cnnjax.models.layers import ACTIVATIONS, INITS


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

    def resize(rows):
        for i in reversed(range(len(rows))):
            module = rows[i].module
            if hasattr(module, "features"):
                resized = dataclasses.replace(rows[i], module=module.clone(features=classes))
                return (*rows[:i], resized, *rows[i + 1 :])
            inner = getattr(module, "layers", None)
            if inner:
                resized = dataclasses.replace(rows[i], module=module.clone(layers=resize(inner)))
                return (*rows[:i], resized, *rows[i + 1 :])
        raise CnnjaxError("the network has no layer with a width that could be its head")

    return Chain(resize(net.layers), tuple(resize((head,))[0] for head in net.aux))


def with_width(net: Chain, factor: float) -> Chain:
    """Every layer's width times `factor` (rounded, kept a multiple of its groups), the head's excepted.

    For lab scale and for tests: the same network with fewer maps.
    """

    def scale(module):
        if not hasattr(module, "features"):
            return module
        groups = getattr(module, "groups", 1)
        return module.clone(features=max(1, round(module.features * factor / groups)) * groups)

    head = next((layer for layer in reversed(net.layers) if hasattr(layer.module, "features")), None)
    narrow = map_modules(net, scale)
    return narrow if head is None else replace(narrow, **{head.name: head.module})


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
