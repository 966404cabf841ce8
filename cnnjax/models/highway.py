"""Highway networks and the plain nets that they were compared with.

R. K. Srivastava, K. Greff, J. Schmidhuber, "Training very deep networks", NIPS 2015, arXiv:1507.06228 (and "Highway
networks", arXiv:1505.00387).

Departures
- The paper prints no layer list for its convolutional MNIST nets. A plain 3×3 convolution, eight highway layers of 3×3
  convolutions and a softmax on 3×3 maps give the printed 39K and 151K parameters (38,730 and 151,178); where the pools
  stand among them is free, and every third layer is our choice.
- Highway A, B, C of its CIFAR-10 table are not here: their layers are not in the paper.
"""

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Chain, Rows, chain, rows, run
from cnnjax.models.layers import Conv, Dense, MaxPool

DEPTHS = (10, 20, 50, 100)  # Fig. 1
Carry = Literal["coupled", "independent"]


class Highway(nn.Module):
    """y = H(x) · T(x) + x · C(x) (equation 2), T and C sigmoids; without a `carry`, C = 1 - T (equation 3).

    `transform` is H, activation included; `gate` and `carry` are T and C before their sigmoids.
    """

    transform: Rows
    gate: Rows
    carry: Rows = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        h = run(self, self.transform, x, train)
        t = run(self, self.gate, x, train)
        c = run(self, self.carry, x, train) if self.carry else -t
        if not x.shape == h.shape == t.shape == c.shape:
            shapes = ", ".join(str(part.shape[1:]) for part in (x, h, t, c))
            raise CnnjaxError(f"a highway layer keeps the shape of its input; input, H, T and C are {shapes}")
        return h * jax.nn.sigmoid(t) + _carried(x, c)


@jax.custom_jvp
def _carried(x: jax.Array, z: jax.Array) -> jax.Array:
    """x · sigmoid(z). The gradient of x has a division: XLA:CPU computes that once.

    A product it would fuse into each of its users, and so with every layer anew what came through all later ones: time
    and compilation would grow with the square of the depth.
    """
    return x * jax.nn.sigmoid(z)


@_carried.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (x, z), (dx, dz) = primals, tangents
    s = jax.nn.sigmoid(z)
    y = x * s
    return y, dx / (1 + jnp.exp(-z)) + dz * (y * (1 - s))


def _highway(layer: partial, *, gate_bias: float, carry: Carry) -> Highway:
    """A highway layer of `layer`s. An independent carry gate starts where the coupled one would: open for T closed."""
    if carry not in ("coupled", "independent"):
        raise unknown("carry gate", carry, ["coupled", "independent"])
    return Highway(
        rows(transform=layer()),
        rows(gate=layer(act=None, bias_init=gate_bias)),
        rows(carry=layer(act=None, bias_init=-gate_bias)) if carry == "independent" else (),
    )


def highway_fc(
    depth: int = 10, classes: int = 10, *, width: int = 50, gate_bias: float = -1.0, carry: Carry = "coupled"
) -> Chain:
    """The fully connected nets of Fig. 1, images [28, 28, 1]: fc1, highway_2 … highway_`depth`, output.

    The paper's are `DEPTHS`, which do not count the softmax, of width 50. Its random search drew the gate's bias from
    -1 to -10, and H as ReLU or tanh (`surgery.with_activation`, which leaves the gates alone).

    Raises `CnnjaxError` for a carry gate that there is not.
    """
    layers = {
        f"highway_{i}": _highway(partial(Dense, width), gate_bias=gate_bias, carry=carry) for i in range(2, depth + 1)
    }
    return Chain(rows(fc1=Dense(width), **layers, output=Dense(classes, act=None)))


def plain_fc(depth: int = 10, classes: int = 10, *, width: int = 71) -> Chain:
    """The plain nets of Fig. 1, images [28, 28, 1]: fc1 … fc`depth`, output.

    A layer of 71 units has 5,112 parameters, a highway layer of 50 has 5,100.
    """
    return chain({f"fc{i}": Dense(width) for i in range(1, depth + 1)}, output=Dense(classes, act=None))


def highway_conv(width: int = 16, classes: int = 10, *, gate_bias: float = -1.0, carry: Carry = "coupled") -> Chain:
    """The convolutional nets of Table 1 for MNIST, images [28, 28, 1]; the paper's widths are 16 and 32.

    Layers: conv1, highway_2, highway_3, pool3, highway_4 … highway_9, pool9, output.
    """
    conv = partial(Conv, width, 3, pad=1)
    layers: dict[str, nn.Module] = {"conv1": conv()}
    for i in range(2, 10):
        layers[f"highway_{i}"] = _highway(conv, gate_bias=gate_bias, carry=carry)
        if i % 3 == 0:
            layers[f"pool{i}"] = MaxPool(2, stride=2)  # 14×14, 7×7, 3×3
    return chain(layers, output=Dense(classes, act=None))
