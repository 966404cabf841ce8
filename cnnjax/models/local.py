"""Locally connected networks beside convolutional ones: what sharing the weights gives.

Y. LeCun, "Generalization and network design strategies", technical report CRG-TR-89-4, University of Toronto, 1989:
five networks for 16×16 digits, from a single layer to two levels of shared weights, with ever fewer free parameters.
There, the units of a map share their weights, but each has a bias of its own. `unshared` turns any convolutional
network into its locally connected twin: the same units and connections, and a weight for each.

Departures
- The output is linear, where the report squashes it as it does the hidden units: the loss decides what becomes of it.
- Connections that reach beyond the image read 0 there, and a row and column more is missing on the right and below than
  on the left and above. The report does not say. They count as connections.
"""

import dataclasses
from typing import Any

import jax

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import Conv, Dense, LocalConv
from cnnjax.models.surgery import map_modules


class UnitBiasConv(Conv):
    """A convolution whose units share the weights of their map but not the bias."""

    def finish(self, x: jax.Array, train: bool, *, unshared: bool = True) -> jax.Array:
        return super().finish(x, train, unshared=unshared)


SQUASH: dict[str, Any] = {"act": "scaled_tanh", "weight_init": "lecun"}
HALVE_3: dict[str, Any] = {"kernel": 3, "stride": 2, "pad": ((0, 1), (0, 1)), **SQUASH}  # 16×16 -> 8×8
HALVE_5: dict[str, Any] = {"kernel": 5, "stride": 2, "pad": ((1, 2), (1, 2)), **SQUASH}  # 8×8 -> 4×4

# fmt: off
HIDDEN = {
    #         first hidden layer                    second                                connections   free parameters
    "Net-1": {},                                                                        # 2,570         2,570
    "Net-2": {"H1": Dense(12, **SQUASH)},                                               # 3,214         3,214
    "Net-3": {"H1": LocalConv(1, **HALVE_3),        "H2": LocalConv(1, **HALVE_5)},     # 1,226         1,226
    "Net-4": {"H1": UnitBiasConv(2, **HALVE_3),     "H2": LocalConv(1, **HALVE_5)},     # 2,266         1,132
    "Net-5": {"H1": UnitBiasConv(2, **HALVE_3),     "H2": UnitBiasConv(4, **HALVE_5)},  # 5,194         1,060
}
# fmt: on


def lecun1989(net: str = "Net-5", *, classes: int = 10) -> Chain:
    """A network of the report, images [16, 16, 1] from -1 to 1; `net` is a key of `HIDDEN`."""
    if net not in HIDDEN:
        raise unknown("network of 1989", net, HIDDEN)
    return chain(HIDDEN[net], output=Dense(classes, act=None, weight_init="lecun"))


def unshared(net: Chain) -> Chain:
    """The locally connected twin: every convolution with weights and biases of its own at every position.

    Raises `CnnjaxError` for grouped or dilated convolutions.
    """

    def edit(module):
        if not isinstance(module, Conv):
            return module
        if module.groups > 1 or module.dilation > 1:
            raise CnnjaxError(f"a convolution with groups or dilation has no locally connected twin here:\n{module}")
        names = [field.name for field in dataclasses.fields(LocalConv) if field.name not in ("parent", "name")]
        return LocalConv(**{name: getattr(module, name) for name in names})

    return map_modules(net, edit)
