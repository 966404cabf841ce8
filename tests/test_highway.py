"""Highway networks: the gates in NumPy, the counts by hand, what learns, and surgery."""

from functools import partial

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, features, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import rows
from cnnjax.models.highway import DEPTHS, Highway, highway_conv, highway_fc, plain_fc
from cnnjax.models.layers import Dense

IMAGE = (28, 28, 1)
MEMBERS = {
    "fully connected": partial(highway_fc, 5, width=8),
    "independent carry gate": partial(highway_fc, 5, width=8, carry="independent"),
    "plain": partial(plain_fc, 5, width=8),
    "convolutional": partial(highway_conv, 4),
}


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_are_those_of_the_sums_by_hand(depth):
    first, last = 784 * 50 + 50, 50 * 10 + 10
    layer, gate = 50 * 50 + 50, 50 * 50 + 50
    assert summarise(highway_fc(depth), IMAGE).params == first + (depth - 1) * (layer + gate) + last
    independent = summarise(highway_fc(depth, carry="independent"), IMAGE).params
    assert independent == first + (depth - 1) * (layer + 2 * gate) + last
    plain = summarise(plain_fc(depth), IMAGE).params
    assert plain == (784 * 71 + 71) + (depth - 1) * (71 * 71 + 71) + (71 * 10 + 10)


@pytest.mark.parametrize(("width", "printed"), [(16, 39), (32, 151)])
def test_convolutional_networks_have_the_parameters_of_table_1(width, printed):
    summary = summarise(highway_conv(width), IMAGE)
    assert summary.params == 10 * width + 8 * 2 * (9 * width**2 + width) + 9 * width * 10 + 10
    assert round(summary.params / 1e3) == printed
    assert [summary[name].output for name in ("pool3", "pool6", "pool9")] == [(n, n, width) for n in (14, 7, 3)]


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", ["coupled", "independent"])
def test_the_gates_in_numpy(carry):
    layer = highway_fc(2, width=6, carry=carry)["highway_2"]
    x = by_hand.noise(4, 6)
    variables = by_hand.scrambled(layer, x)
    p = {name: variables["params"][name] for name in variables["params"]}
    pre = {name: x @ array["kernel"] + array["bias"] for name, array in p.items()}
    h, t = by_hand.relu(pre["transform"]), by_hand.sigmoid(pre["gate"])
    c = by_hand.sigmoid(pre["carry"]) if carry == "independent" else 1 - t
    y = by_hand.evaluate(layer, variables, x)
    np.testing.assert_allclose(y, h * t + x * c, rtol=1e-5)
    for wrong in (h * t - x * c, h * t + x * (1 + t), h * c + x * t, h * t + x * t, h * t + by_hand.relu(x) * c):
        assert not np.allclose(y, wrong, atol=1e-2)


def test_the_convolutional_gates_in_numpy():
    layer = highway_conv(3)["highway_2"]
    x = by_hand.noise(2, 5, 5, 3)
    variables = by_hand.scrambled(layer, x)
    h, t = (
        by_hand.conv(x, p["kernel"], pad=1) + p["bias"]
        for p in (variables["params"]["transform"], variables["params"]["gate"])
    )
    h, t = by_hand.relu(h), by_hand.sigmoid(t)
    y = by_hand.evaluate(layer, variables, x)
    np.testing.assert_allclose(y, h * t + x * (1 - t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("carry", ["coupled", "independent"])
def test_the_gate_s_bias_sets_how_much_is_carried_at_first(carry, key):
    """Both carry gates start out as open, sigmoid(3): a deep stack passes its input on."""
    layer = highway_fc(2, width=50, gate_bias=-3.0, carry=carry)["highway_2"]
    params = layer.init(key, jnp.zeros((1, 50)), False)["params"]
    assert (params["gate"]["bias"] == -3).all() and not params["transform"]["bias"].any()
    muted = jax.tree.map(np.zeros_like, params) | {
        name: {"kernel": np.zeros((50, 50), np.float32), "bias": params[name]["bias"]} for name in params
    }
    x = by_hand.noise(4, 50)
    np.testing.assert_allclose(layer.apply({"params": muted}, x, False), x * by_hand.sigmoid(3), rtol=1e-5)


def test_a_layer_that_changes_the_width_is_refused():
    wrong = Highway(rows(transform=Dense(6)), rows(gate=Dense(6, act=None)))
    with pytest.raises(CnnjaxError, match=r"input, H, T and C are \(4,\), \(6,\), \(6,\), \(6,\)"):
        wrong.init(jax.random.key(0), jnp.zeros((1, 4)), False)


def test_a_carry_gate_that_there_is_not_is_refused():
    with pytest.raises(CnnjaxError, match="carry gate 'tied'\nlegal: coupled, independent"):
        highway_fc(carry="tied")


# --- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carry", ["coupled", "independent"])
def test_gradient_is_that_of_the_equation_also_through_gates_that_are_shut(carry):
    gates = jnp.array([-120.0, -90.0, -3.0, 0.0, 2.0, 90.0, 120.0])
    x, h = jnp.linspace(-2, 2, 7), jnp.linspace(3, 1, 7)

    def layer(x, h, z):
        zero = {"kernel": jnp.zeros((7, 7))}
        params = {"transform": {**zero, "bias": h}, "gate": {**zero, "bias": z}, "carry": {**zero, "bias": -z}}
        gate = partial(Dense, 7, act=None)
        some = rows(carry=gate()) if carry == "independent" else ()
        net = Highway(rows(transform=gate()), rows(gate=gate()), some)
        return net.apply({"params": params}, x[None], False)[0]

    def equation(x, h, z):
        return h * jax.nn.sigmoid(z) + x * (1 - jax.nn.sigmoid(z))

    for back in (lambda f: jax.jacrev(f, (0, 1, 2)), lambda f: jax.jacfwd(f, (0, 1, 2))):
        found = back(layer)(x, h, gates)
        chex.assert_tree_all_finite(found)
        chex.assert_trees_all_close(found, back(equation)(x, h, gates), atol=1e-6)


def test_compiled_gradient_grows_with_the_depth_and_not_with_its_square():
    """XLA:CPU would fuse into each layer's gradient what came through all later ones: twice as much at 30 layers."""

    def read(depth: int) -> float:
        net = highway_fc(depth, width=8)
        images = jnp.ones((16, *IMAGE))
        params = net.init(jax.random.key(0), images)["params"]
        gradient = jax.jit(jax.grad(lambda params: net.apply({"params": params}, images).logits.sum()))
        return gradient.lower(params).compile().cost_analysis()["bytes accessed"]

    five, ten, thirty = map(read, (5, 10, 30))
    assert (thirty - ten) / 20 < 1.2 * (ten - five) / 5


# --- what learns, and surgery -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", MEMBERS)
def test_a_gradient_reaches_every_leaf(member, strict):
    assert by_hand.leaves_without_gradient(MEMBERS[member](), by_hand.noise(2, *IMAGE)) == []


def test_what_is_rectified_and_what_is_not():
    net = highway_fc(3, width=8)
    images = by_hand.noise(4, *IMAGE)
    variables = by_hand.scrambled(net, images)
    names = ("fc1", "highway_2/transform", "highway_2/gate", "output")
    found = features(net, variables, images, names)
    assert {name: bool(y.min() >= 0) for name, y in found.items()} == {
        "fc1": True, "highway_2/transform": True, "highway_2/gate": False, "output": False
    }  # fmt: skip


def test_another_activation_leaves_the_gates_sigmoid():
    net = surgery.with_activation(highway_fc(3, width=8), "tanh")
    layer = net["highway_2"]
    assert isinstance(layer, Highway)
    assert (layer.transform[0].module.act, layer.gate[0].module.act) == ("tanh", None)


@pytest.mark.parametrize("make", [partial(highway_fc, 5, width=8), partial(plain_fc, 5, width=8)])
def test_a_layer_is_skipped_as_if_it_were_removed(make):
    net = make()
    images = by_hand.noise(4, *IMAGE)
    variables = by_hand.scrambled(net, images)
    third = net.names[2]
    lesioned = applied(net, variables, images, skip=frozenset({third})).logits
    chex.assert_trees_all_close(lesioned, applied(surgery.without(net, third), variables, images).logits, rtol=1e-6)
    assert not np.allclose(lesioned, applied(net, variables, images).logits)
    with pytest.raises(CnnjaxError, match=r"'fc1' cannot be skipped: it turns \(28, 28, 1\) into \(8,\)"):
        net.apply(variables, images, skip=frozenset({"fc1"}))


def test_a_network_is_cut_and_gets_a_new_head():
    net = highway_conv(4)
    images = by_hand.noise(2, *IMAGE)
    variables = by_hand.scrambled(net, images)
    cut = surgery.until(net, "highway_5")
    inner = features(net, variables, images, ("highway_5",))["highway_5"]
    chex.assert_trees_all_close(applied(cut, variables, images).logits, inner, rtol=1e-6)
    other = surgery.with_head(net, 37)
    assert {name for name in net.names if other[name] != net[name]} == {"output"}
    assert summarise(other, IMAGE)["output"].output == (37,)


def test_narrow_members_stay_highways():
    assert narrow(highway_fc(10), by=10) == highway_fc(10, width=5)
