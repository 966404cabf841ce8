"""The one idea: chains of named layers, blocks of them, features by name."""

import chex
import jax
import jax.numpy as jnp
import pytest

from cnnjax.errors import CnnjaxError
from cnnjax.models.alexnet import alexnet
from cnnjax.models.chain import Aux, Block, Chain, Concat, Layer, Residual, chain, features, rows
from cnnjax.models.layers import LRN, AvgPool, Conv, Dense, Dropout, GlobalAvgPool, LocalConv, MaxPool, Norm
from cnnjax.models.surgery import with_width


def tiny() -> Chain:
    """One of everything: normalisation, a residual block, branches, a head, dropout."""
    return chain(
        conv1=Conv(4, 3, pad=1, bias=False, norm=Norm()),
        pool1=MaxPool(2, stride=2),
        res2=Residual(rows(a=Conv(4, 3, pad=1, bias=False, norm=Norm()), b=Conv(4, 3, pad=1, act=None))),
        mixed3=Concat((rows({"1x1": Conv(3, 1)}), rows(pool=MaxPool(3, stride=1, pad=1), proj=Conv(2, 1)), ())),
        norm3=LRN(),
        pool4=GlobalAvgPool(),
        fc5=Dense(6, dropout=0.5),
        fc6=Dense(5, act=None),
        aux=(Aux("aux2", "res2", Block(rows(pool=AvgPool(2, stride=2), fc=Dense(5, act=None)))),),
    )


@pytest.fixture
def made(key):
    net, images = tiny(), jax.random.normal(key, (3, 8, 8, 2))
    return net, net.init({"params": key}, images), images


def test_parameters_and_statistics_are_keyed_by_layer_name(made):
    _, variables, _ = made
    assert set(variables["params"]) == {"conv1", "res2", "mixed3", "fc5", "fc6", "aux2"}
    assert set(variables["params"]["mixed3"]) == {"1x1", "proj"}
    assert set(variables["batch_stats"]) == {"conv1", "res2"}
    assert set(variables["params"]["conv1"]) == {"kernel", "norm"}


def test_heads_answer_in_training_only(made, key):
    net, variables, images = made
    out = net.apply(variables, images)
    assert out.aux == {}
    trained, state = net.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    chex.assert_shape([out.logits, trained.logits, trained.aux["aux2"]], (3, 5))
    assert set(state) == {"batch_stats"}


def test_frozen_layers_act_as_in_inference(made, key):
    net, variables, images = made
    everything = frozenset(net.names)
    out, state = net.apply(
        variables, images, train=True, frozen=everything, mutable=["batch_stats"], rngs={"dropout": key}
    )
    chex.assert_trees_all_equal(state["batch_stats"], variables["batch_stats"])
    chex.assert_trees_all_equal(out.logits, net.apply(variables, images).logits)
    _, moved = net.apply(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    assert float(jnp.abs(moved["batch_stats"]["conv1"]["norm"]["mean"]).max()) > 0


def test_a_block_whose_shape_stays_can_be_skipped_and_no_other(made):
    net, variables, images = made
    skipped = net.apply(variables, images, skip=frozenset({"res2"})).logits
    assert not jnp.allclose(skipped, net.apply(variables, images).logits)
    with pytest.raises(CnnjaxError, match=r"'mixed3' cannot be skipped: it turns \(4, 4, 4\) into \(4, 4, 9\)"):
        net.apply(variables, images, skip=frozenset({"mixed3"}))


@pytest.mark.parametrize("argument", ["skip", "frozen"])
def test_an_unknown_layer_is_named_beside_the_legal_ones(made, argument):
    net, variables, images = made
    with pytest.raises(CnnjaxError, match=r"unknown layer 'conv9'\nlegal: conv1, pool1, res2"):
        net.apply(variables, images, **{argument: frozenset({"conv9"})})


def test_features_of_any_layer_and_of_layers_inside_blocks(made):
    net, variables, images = made
    chex.assert_trees_all_equal(features(net, variables, images, "fc6"), net.apply(variables, images).logits)
    found = features(net, variables, images, ("pool1", "mixed3/1x1"))
    chex.assert_shape([found["pool1"], found["mixed3/1x1"]], [(3, 4, 4, 4), (3, 4, 4, 3)])
    for wrong in ("conv9", "mixed3/2x2"):
        with pytest.raises(CnnjaxError, match="unknown layer"):
            features(net, variables, images, wrong)


def test_features_stop_at_the_layer():
    net = with_width(alexnet(10), 1 / 16)
    variables = net.init(jax.random.key(0), jnp.zeros((1, 67, 67, 3)))
    without_head = {"params": {name: tree for name, tree in variables["params"].items() if not name.startswith("fc")}}
    assert features(net, without_head, jnp.zeros((2, 67, 67, 3)), "pool5").shape == (2, 1, 1, 16)


def test_networks_compare_and_hash_by_what_they_are():
    assert tiny() == tiny() and hash(tiny()) == hash(tiny())
    assert alexnet() != alexnet(groups=1)
    traces = 0

    def count(net, x):
        nonlocal traces
        traces += 1
        return x

    jitted = jax.jit(count, static_argnums=0)
    jitted(tiny(), 1.0), jitted(tiny(), 2.0)
    assert traces == 1


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Chain((Layer("a", Dense(1)), Layer("a", Dense(2)))), "two layers are named 'a'"),
        (lambda: chain({"a/b": Dense(1)}), "cannot be named 'a/b'"),
        (lambda: chain(a=Dense(1), aux=(Aux("h", "b", Dense(1)),)), "unknown layer for the head 'h' 'b'"),
        (lambda: chain(a=Conv(1, [3, 3])), "tuples, not lists"),
        (lambda: chain(a=jax.nn.relu), "which is no module"),
        (lambda: Dense(1, act="rellu"), "unknown activation 'rellu'\nlegal: relu, tanh"),
        (lambda: Dense(1, weight_init="xavier"), "unknown initialiser 'xavier'"),
        (lambda: Dense(1, dropout=1.5), "dropout 1.5 is not a probability"),
    ],
)
def test_a_wrong_table_is_refused(build, message):
    with pytest.raises(CnnjaxError, match=message.replace("(", r"\(")):
        build()


def test_what_does_not_fit_names_the_layer(key):
    with pytest.raises(CnnjaxError, match="layer pool2: a 3×3 window does not fit an input of 2×2"):
        alexnet().init(key, jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(CnnjaxError, match="layer conv1: 2 groups do not divide 3 input"):
        chain(conv1=Conv(4, 3, groups=2)).init(key, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(CnnjaxError, match=r"layer r: a shortcut of \(8, 8, 3\) cannot be added"):
        chain(r=Residual(rows(c=Conv(4, 3, pad=1)))).init(key, jnp.zeros((1, 8, 8, 3)))


def test_normalisation_by_the_batch_and_by_running_statistics(key):
    net = chain(conv=Conv(3, 1, bias=False, norm=Norm(epsilon=0.0, momentum=0.9), act=None))
    x = 3 + 2 * jax.random.normal(key, (4, 5, 5, 3))
    variables = net.init(key, x)
    variables["params"]["conv"]["kernel"] = jnp.eye(3)[None, None]
    out, state = net.apply(variables, x, train=True, mutable=["batch_stats"])
    chex.assert_trees_all_close(out.logits.mean((0, 1, 2)), jnp.zeros(3), atol=1e-5)
    chex.assert_trees_all_close(out.logits.std((0, 1, 2)), jnp.ones(3), rtol=1e-5)
    running = state["batch_stats"]["conv"]["norm"]
    chex.assert_trees_all_close(running["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    chex.assert_trees_all_close(running["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-4)  # unbiased


def test_a_scaleless_normalisation_has_no_gamma(key):
    net = chain(conv=Conv(3, 1, bias=False, norm=Norm(scale=False)))
    assert set(net.init(key, jnp.zeros((1, 4, 4, 3)))["params"]["conv"]["norm"]) == {"bias"}


def test_biases_start_where_the_table_says(key):
    params = alexnet(10).init(key, jnp.zeros((1, 67, 67, 3)))["params"]
    ones = {name for name, tree in params.items() if float(tree["bias"].min()) == 1}
    assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}  # Krizhevsky et al. 2012, section 5
    assert abs(float(params["fc7"]["kernel"].std()) - 0.01) < 1e-4


def test_local_layers_share_nothing(key):
    params = chain(local=LocalConv(4, 3, pad=1)).init(key, jnp.zeros((1, 6, 5, 2)))["params"]["local"]
    chex.assert_shape([params["kernel"], params["bias"]], [(6, 5, 18, 4), (6, 5, 4)])


def test_forward_loss_and_gradient_run_under_the_strict_flags(made, key, strict):
    net, variables, images = made

    @jax.jit
    def loss(params):
        rest = {"batch_stats": variables["batch_stats"]}
        out, _ = net.apply(
            {"params": params, **rest}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return out.logits.sum() + out.aux["aux2"].sum()

    grads = jax.grad(loss)(variables["params"])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


def test_dropout_as_a_row_is_idle_at_inference(key):
    net = chain(drop=Dropout(0.5))
    x = jnp.ones((4, 100))
    chex.assert_trees_all_equal(net.apply({}, x).logits, x)
    assert float((net.apply({}, x, train=True, rngs={"dropout": key}).logits == 0).mean()) > 0.3
