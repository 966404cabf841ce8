"""Folding: the same logits from a network without the normalisations that follow a linear layer."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied
from test_contract import MEMBERS

from cnnjax.models import surgery
from cnnjax.models.chain import Concat, chain, rows
from cnnjax.models.layers import Activation, BatchNorm, Conv, ConvTranspose, Dense, LocalConv, Norm
from cnnjax.models.transform_net import super_resolution

NETS = {name: MEMBERS[name] for name, (net, *_) in MEMBERS.items() if "Norm(" in repr(net)}
NETS["super-resolution"] = (super_resolution(), 8, 3)
PRE_ACTIVATION = ("resnet v2", "densenet", "densenet, cifar")


def made(net, size, channels):
    """Variables in which every normalisation does something, and images."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, size, size, channels)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)

    def values(path, leaf):
        name = path[-1].key
        x = rng.normal(size=leaf.shape)
        if name in ("scale", "var"):
            x = np.exp(0.3 * x)
        elif name in ("bias", "mean"):
            x = 0.3 * x
        else:
            x = x * (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(values, shapes), images


def normalisations(net):
    found = []
    surgery.map_modules(net, lambda m: found.append(isinstance(m, BatchNorm) or bool(getattr(m, "norm", None))) or m)
    return [one for one in found if one]


@pytest.mark.parametrize("name", NETS)
def test_a_folded_network_gives_the_same_logits(name):
    net, size, channels = NETS[name]
    variables, images = made(net, size, channels)
    folded, weights = surgery.fold(net, variables)
    before, after = applied(net, variables, images).logits, applied(folded, weights, images).logits
    scale = float(jnp.abs(before).max())
    assert scale > 1e-3
    chex.assert_trees_all_close(after, before, rtol=0, atol=1e-5 * scale)
    left = normalisations(folded)
    assert len(left) < len(normalisations(net))
    assert bool(left) == (name in PRE_ACTIVATION)


@pytest.mark.parametrize("name", ["resnet, bottleneck", "densenet", "highway"])
def test_variables_are_those_that_the_folded_network_asks_for(name):
    net, size, channels = MEMBERS[name]
    variables, images = made(net, size, channels)
    folded, weights = surgery.fold(net, variables)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(folded.init, jax.random.key(0), images), weights)


@pytest.mark.parametrize("layer", [
    Conv(4, 3, act=None), Conv(4, 3, act=None, bias=False, groups=2), ConvTranspose(4, 3, act=None), Dense(4, act=None),
    LocalConv(4, 3, act=None, bias=False), Conv(4, 3, act=None, norm=Norm(scale=False)),
    Conv(4, 3, act=None, dropout=0.5),
])  # fmt: skip
def test_a_row_behind_a_linear_layer_is_folded_into_it(layer):
    net = chain(linear=layer, norm=BatchNorm(Norm(epsilon=1e-3)), relu=Activation())
    variables, images = made(net, 6, 2)
    folded, weights = surgery.fold(net, variables)
    assert folded.names == ("linear", "relu") and "batch_stats" not in weights
    before, after = net.apply(variables, images).logits, folded.apply(weights, images).logits
    chex.assert_trees_all_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("net", [
    chain(conv=Conv(4, 3), norm=BatchNorm()),                   # an activation between
    chain(norm=BatchNorm(), conv=Conv(4, 3, act=None)),         # before
    chain(both=Concat((rows(a=Conv(4, 3, act=None)), rows(b=Conv(4, 3, act=None)))), norm=BatchNorm()),
])  # fmt: skip
def test_a_normalisation_that_follows_no_linear_layer_stays(net):
    variables, _ = made(net, 6, 2)
    folded, weights = surgery.fold(net, variables)
    assert folded == net
    chex.assert_trees_all_equal(weights, variables)


def test_heads_for_training_go():
    net, size, channels = MEMBERS["googlenet"]
    variables, _ = made(net, size, channels)
    folded, weights = surgery.fold(net, variables)
    assert net.aux and not folded.aux
    assert set(weights["params"]) == set(variables["params"]) - {head.name for head in net.aux}


def test_a_subclass_with_its_own_arithmetic_is_left_alone():
    class Doubled(Conv):
        @nn.compact
        def __call__(self, x, train):
            return 2 * super().__call__(x, train)

    net = chain(conv=Doubled(4, 3, norm=Norm()))
    variables, _ = made(net, 6, 2)
    assert surgery.fold(net, variables)[0] == net
