"""LeNet-5.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998,
section II.B. `lenet5_1998` is the network of the paper: sparse C3 (Table I), trainable subsampling, Euclidean RBF
output, 60,000 trainable parameters exactly. `lenet5` is what everybody calls LeNet-5 today: dense C3, mean pooling, a
linear output.

Departures
- `lenet5_1998`: the paper's bitmaps of the RBF targets (its Fig. 3) are drawn anew in the same 7×12 cells; they cover
  the ten digits only.
- `lenet5` and the copies below are not the paper's network; each says whose it is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.models import ops
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import AvgPool, Conv, Dense, MaxPool, Weighted
from cnnjax.models.surgery import with_init

# Table I: the maps of S2 that each of the 16 maps of C3 reads.
# fmt: off
C3_TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)

# The digits in cells of 7×12, rows top to bottom: the fixed centres of the output units, +1 for ink.
DIGITS = {
    0: "....... ..###.. .##.##. ##...## ##...## ##...## ##...## ##...## .##.##. ..###.. ....... .......",
    1: "....... ...##.. .####.. ...##.. ...##.. ...##.. ...##.. ...##.. ...##.. .###### ....... .......",
    2: "....... .#####. ##...## .....## .....## ....##. ...##.. ..##... .##.... ####### ....... .......",
    3: "....... .#####. ##...## .....## .....## ..####. .....## .....## ##...## .#####. ....... .......",
    4: "....... ....##. ...###. ..####. .##.##. ##..##. ####### ....##. ....##. ....##. ....... .......",
    5: "....... ####### ##..... ##..... ######. .....## .....## .....## ##...## .#####. ....... .......",
    6: "....... ..####. .##.... ##..... ######. ##...## ##...## ##...## ##...## .#####. ....... .......",
    7: "....... ####### .....## ....##. ....##. ...##.. ...##.. ..##... ..##... ..##... ....... .......",
    8: "....... .#####. ##...## ##...## ##...## .#####. ##...## ##...## ##...## .#####. ....... .......",
    9: "....... .#####. ##...## ##...## ##...## .###### .....## .....## ....##. .####.. ....... .......",
}
# fmt: on
BITMAPS = tuple(tuple(1.0 if dot == "#" else -1.0 for dot in rows.replace(" ", "")) for rows in DIGITS.values())


class SparseConv(Weighted):
    """A convolution whose map i reads only the input maps `table[i]`: one plane of weights for each connection."""

    kernel: int
    table: tuple[tuple[int, ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        size = self.kernel
        reads = [len(row) for row in self.table]
        fan_in = jnp.asarray(np.repeat(reads, reads) * size**2, float)
        fan_out = size**2 * sum(reads) / x.shape[-1]
        planes = self.weight("kernel", (size, size, sum(reads)), fan_in=fan_in, fan_out=fan_out)
        return self.finish(ops.by_platform({"cpu": self._dense, "default": self._grouped}, x, planes), train)

    def _grouped(self, x, planes):
        """Rows of equal length as one grouped convolution: no multiplication that the table does not ask for."""
        maps, first = [], 0
        for reads in sorted({len(row) for row in self.table}):
            group = [row for row in self.table if len(row) == reads]
            count = reads * len(group)
            kernel = planes[..., first : first + count].reshape(self.kernel, self.kernel, len(group), reads)
            inputs = x[..., np.concatenate(group)]
            maps.append(ops.conv(inputs, kernel.transpose(0, 1, 3, 2), groups=len(group)))
            first += count
        return jnp.concatenate(maps, axis=-1)

    def _dense(self, x, planes):
        """The same as one dense convolution with zeros where nothing is connected: faster on a CPU."""
        place = np.full((x.shape[-1], len(self.table)), planes.shape[-1])
        place[np.concatenate(self.table), np.repeat(np.arange(len(self.table)), [len(r) for r in self.table])] = (
            np.arange(planes.shape[-1])
        )
        return ops.conv(x, jnp.pad(planes, ((0, 0), (0, 0), (0, 1)))[..., place])


class Subsample(Weighted):
    """act(coefficient · (sum of each 2×2) + bias), one coefficient and one bias a map."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        coefficient = self.weight("coefficient", (x.shape[-1],), fan_in=4, fan_out=1)
        x = 4 * ops.avg_pool(x, 2, stride=2)
        return self.finish(x * coefficient.reshape(1, 1, 1, -1), train)


class RBF(nn.Module):
    """-Σ_j (x_j - w_ij)² for fixed centres w of ±1: [batch, len(centres)], equation 7 with the sign of a logit."""

    centres: tuple[tuple[float, ...], ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        centres = jnp.asarray(self.centres, x.dtype)
        return -jnp.square(x[:, None, :] - centres[None]).sum(-1)


def lenet5_1998(*, pad: int = 0) -> Chain:
    """The network of 1998, for the ten digits, images [32, 32, 1] (or 28×28 with `pad=2`); ink 1.175, paper -0.1."""
    net = chain(
        C1=Conv(6, 5, pad=pad, act="scaled_tanh"),              # 28×28
        S2=Subsample(act="scaled_tanh"),                        # 14×14
        C3=SparseConv(5, C3_TABLE, act="scaled_tanh"),          # 10×10
        S4=Subsample(act="scaled_tanh"),                        # 5×5
        C5=Conv(120, 5, act="scaled_tanh"),                     # 1×1
        F6=Dense(84, act="scaled_tanh"),
        output=RBF(BITMAPS),
    )  # fmt: skip
    return with_init(net, "lecun")


def lenet5(classes: int = 10, *, pad: int = 0, act: str = "tanh") -> Chain:
    """Dense LeNet-5, 61,706 parameters: every map of C3 reads all of S2, parameter-free mean pooling, linear output.

    Images [32, 32, channels], or 28×28 with `pad=2`. The lectures' traffic-sign network is `lenet5(43, act="relu")`.
    """
    return chain(
        C1=Conv(6, 5, pad=pad, act=act),                        # 28×28
        S2=AvgPool(2, stride=2),                                # 14×14
        C3=Conv(16, 5, act=act),                                # 10×10
        S4=AvgPool(2, stride=2),                                # 5×5
        C5=Dense(120, act=act),
        F6=Dense(84, act=act),
        output=Dense(classes, act=None),
    )  # fmt: skip


def lenet_caffe(classes: int = 10) -> Chain:
    """Caffe's LeNet (examples/mnist): max-pooling and a single ReLU, after ip1. Images [28, 28, channels]."""
    net = chain(
        conv1=Conv(20, 5, act=None),                            # 24×24
        pool1=MaxPool(2, stride=2),                             # 12×12
        conv2=Conv(50, 5, act=None),                            # 8×8
        pool2=MaxPool(2, stride=2),                             # 4×4
        ip1=Dense(500),
        ip2=Dense(classes, act=None),
    )  # fmt: skip
    return with_init(net, "glorot")


def lenet_slim(classes: int = 10) -> Chain:
    """TF-slim's nets/lenet.py: SAME padding, max-pooling, ReLU, 1,024 units. Images [28, 28, channels]."""
    return chain(
        conv1=Conv(32, 5, pad="SAME"),                          # 28×28
        pool1=MaxPool(2, stride=2),                             # 14×14
        conv2=Conv(64, 5, pad="SAME"),                          # 14×14
        pool2=MaxPool(2, stride=2),                             # 7×7
        fc3=Dense(1024, dropout=0.5),
        fc4=Dense(classes, act=None),
    )  # fmt: skip
