"""Deep networks of layers that are all alike, to compare what carries signals and gradients through them.

Six kinds: plain, with batch normalisation, with shortcuts (He et al. 2015), with gates (Srivastava et al. 2015), with
dense connections (Huang et al. 2017) and with auxiliary heads (Szegedy et al. 2014), as fully connected layers behind
two convolutions. No paper has these networks; they are ours.
"""

import flax.linen as nn
import jax

from cnnjax.errors import CnnjaxError, unknown
from cnnjax.models.chain import Aux, Chain, Concat, Residual, Rows, rows, run
from cnnjax.models.highway import Highway
from cnnjax.models.layers import Activation, Conv, Dense, MaxPool, Norm
from cnnjax.models.surgery import with_activation, with_init

KINDS = ("plain", "bn", "residual", "highway", "dense", "aux")


class Stack(nn.Module):
    """`depth` times the same rows, with weights of their own, as one loop: every leaf is [depth, …].

    What is compiled does not grow with the depth. The rows must keep the shape of what they read.
    """

    layers: Rows
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def body(module, x, _):
            return run(module, self.layers, x, train), None

        lifted = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True, "dropout": True}}
        return nn.scan(body, length=self.depth, **lifted)(self, x, None)[0]


def deep(kind: str, depth: int, classes: int = 10, *, width: int = 32, act: str = "relu") -> Chain:
    """conv1, pool1, conv2, pool2, fc1, `depth` hidden layers of a kind, output; images of 16×16 or more.

    The hidden layers are the row "stack"; of "aux", whose heads follow each third but the last, stack1 to stack3; of
    "dense", which append 8 units each, dense_1, dense_2, …. A residual layer is x + W act(x) / √depth. Behind the
    convolutions weights are He's for ReLU and Glorot's for others.

    Raises `CnnjaxError` for a kind that there is not, or fewer than 3 layers.
    """
    if kind not in KINDS:
        raise unknown("kind of deep network", kind, KINDS)
    if depth < 3:
        raise CnnjaxError(f"a deep network has 3 layers or more, not {depth}")
    plain, output, aux = rows(fc=Dense(width)), Dense(classes, act=None), ()
    if kind == "dense":
        hidden = rows({f"dense_{i}": Concat(((), rows(fc=Dense(8)))) for i in range(1, depth + 1)})
    elif kind == "aux":
        third = depth // 3
        hidden = rows(stack1=Stack(plain, third), stack2=Stack(plain, third), stack3=Stack(plain, depth - 2 * third))
        aux = (Aux("aux1", "stack1", output), Aux("aux2", "stack2", output))
    else:
        body = rows(act=Activation(), fc=Dense(width, act=None))
        gate = Dense(width, act=None, bias_init=-1.0)
        layer = {
            "plain": plain,
            "bn": rows(fc=Dense(width, bias=False, norm=Norm())),
            "residual": rows(residual=Residual(body, act=None, scale=depth**-0.5)),
            "highway": rows(highway=Highway(rows(transform=Dense(width)), rows(gate=gate))),
        }[kind]
        hidden = rows(stack=Stack(layer, depth))
    net = with_activation(Chain((*rows(fc1=Dense(width)), *hidden, *rows(output=output)), aux), act)
    net, pool = with_init(net, "he" if act == "relu" else "glorot"), MaxPool(2, stride=2)
    return Chain((*rows(conv1=Conv(8, 5), pool1=pool, conv2=Conv(16, 5), pool2=pool), *net.layers), net.aux)
