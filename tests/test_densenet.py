"""DenseNets against their paper, well-known wrong copies, NumPy and surgery."""

from functools import partial

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, compiled, features, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import Chain
from cnnjax.models.densenet import TABLE_1, densenet, densenet_cifar
from cnnjax.models.layers import Conv

IMAGE, SMALL = (224, 224, 3), (32, 32, 3)
MEMBERS = {
    "121": lambda: shallow(densenet()),
    "basic": partial(densenet_cifar, 7, 12),
    "C": partial(densenet_cifar, 7, 12, compression=0.5),
    "BC": partial(densenet_cifar, 10, 12, bottleneck=True, compression=0.5),
}


def shallow(net: Chain) -> Chain:
    """One layer a block."""
    return surgery.without(net, *[name for name in net.names if "_" in name and not name.endswith("_1")])


@pytest.fixture(params=MEMBERS)
def member(request):
    """A narrow, shallow network, its variables and images."""
    net = narrow(MEMBERS[request.param](), by=4)
    images = by_hand.noise(2, *SMALL)
    return net, by_hand.scrambled(net, images), images


# --- counts -----------------------------------------------------------------------------------------------------------


def second_count(depth: int, k: int, *, bottleneck: bool, compression: float, stem: int) -> int:
    """The parameters of a CIFAR DenseNet from the shapes of its arrays, γ and β as (2, maps)."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, stem)]
    maps = stem
    for block in range(3):
        for _ in range((depth - 4) // (6 if bottleneck else 3)):
            shapes += [(2, maps), (1, 1, maps, 4 * k), (2, 4 * k)] if bottleneck else [(2, maps)]
            shapes += [(3, 3, 4 * k if bottleneck else maps, k)]
            maps += k
        if block < 2:
            shapes += [(2, maps), (1, 1, maps, int(maps * compression))]
            maps = int(maps * compression)
    shapes += [(2, maps), (maps, 10), (10,)]
    return sum(int(np.prod(shape)) for shape in shapes)


@pytest.mark.parametrize(
    ("depth", "k", "bottleneck", "compression", "millions"),
    [
        (40, 12, False, 1.0, 1.0),
        (100, 12, True, 0.5, 0.8),
        (100, 12, True, 1.0, None),  # the halves of BC: Fig. 4, no printed count
        (100, 12, False, 0.5, None),
    ],
)
def test_parameters_are_those_of_table_2_and_of_a_second_count(depth, k, bottleneck, compression, millions):
    ours = summarise(densenet_cifar(depth, k, bottleneck=bottleneck, compression=compression), SMALL).params
    stem = 2 * k if bottleneck and compression < 1 else 16
    assert ours == second_count(depth, k, bottleneck=bottleneck, compression=compression, stem=stem)
    assert millions is None or round(ours / 1e6, 1) == millions


def test_b_and_c_alone_by_hand():
    """A block of n layers that starts with m maps reads n·m + k·n(n - 1)/2 maps in all."""
    k = 12
    n, starts = 16, (16, 16 + 16 * k, 16 + 32 * k)
    read = sum(n * m + k * n * (n - 1) // 2 for m in starts)
    layers = (2 + 48) * read + 3 * n * (2 * 48 + 9 * 48 * k)
    b = 432 + layers + sum(2 * m + m * m for m in (208, 400)) + 2 * 592 + 592 * 10 + 10
    assert summarise(densenet_cifar(100, k, bottleneck=True), SMALL).params == b

    n, starts = 32, (16, 200, 292)  # half of 16 + 384, half of 200 + 384
    read = sum(n * m + k * n * (n - 1) // 2 for m in starts)
    c = 432 + (2 + 9 * k) * read + sum(2 * m + m * (m // 2) for m in (400, 584)) + 2 * 676 + 676 * 10 + 10
    assert summarise(densenet_cifar(100, k, compression=0.5), SMALL).params == c


def test_the_stem_of_the_authors_code_is_found_out():
    """Their basic nets start with 2k maps, and their transitions are as much wider; the paper says 16."""
    right = densenet_cifar(40, 12)
    wrong = surgery.map_modules(
        right, lambda m: m.clone(features=m.features + 8) if isinstance(m, Conv) and m.features != 12 else m
    )
    as_the_authors = second_count(40, 12, bottleneck=False, compression=1.0, stem=24)
    assert summarise(right, SMALL).params == 1_019_722 != summarise(wrong, SMALL).params == as_the_authors


@pytest.mark.parametrize("depth", TABLE_1)
def test_depth_is_the_number_of_layers_with_weights(depth):
    convolutions = [module for module in by_hand.modules(densenet(depth)) if isinstance(module, Conv)]
    assert len(convolutions) + 1 == (
        265 if depth == 264 else depth
    )  # 1 + 2·(6 + 12 + 64 + 48) + 3 + 1: the paper's slip


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_stages_of_121_are_those_of_table_1():
    net = densenet()
    assert [name for name in net.names if not name.startswith("dense")] == [
        "conv0", "pool0", "trans1", "trans2", "trans3", "norm5", "relu5", "pool5", "fc"
    ]  # fmt: skip
    summary = summarise(net, IMAGE)
    named = ("conv0", "pool0", "dense1_6", "trans1", "dense2_12", "trans2", "dense3_24", "trans3", "dense4_16", "pool5")
    assert [summary[name].output for name in named] == [
        (112, 112, 64), (56, 56, 64), (56, 56, 256), (28, 28, 128), (28, 28, 512), (14, 14, 256),
        (14, 14, 1024), (7, 7, 512), (7, 7, 1024), (1024,),
    ]  # fmt: skip


def test_a_layer_keeps_its_input_in_front_of_what_it_adds():
    net = narrow(densenet_cifar(10, 12), by=4)
    images = by_hand.noise(2, *SMALL)
    variables = by_hand.scrambled(net, images)
    names = ("conv0", "dense1_1", "dense1_2")
    found = features(net, variables, images, names)
    chex.assert_trees_all_equal(found["dense1_1"][..., :4], found["conv0"])
    chex.assert_trees_all_equal(found["dense1_2"][..., :7], found["dense1_1"])


# --- a second opinion in NumPy ----------------------------------------------------------------------------------------


def activated(x: np.ndarray, variables: dict, name: str) -> np.ndarray:
    return by_hand.relu(by_hand.norm(x, variables["params"][name], variables["batch_stats"][name]))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_layer_in_numpy(bottleneck):
    layer = densenet_cifar(10, 3, bottleneck=bottleneck)["dense1_1"]
    x = by_hand.noise(2, 5, 5, 4)
    variables = by_hand.scrambled(layer, x)
    y = activated(x, variables, "norm1")
    if bottleneck:
        y = by_hand.conv(y, variables["params"]["conv1"]["kernel"])
        assert y.shape[-1] == 12  # 4k
        y = activated(y, variables, "norm2")
    y = by_hand.conv(y, variables["params"]["conv2"]["kernel"], pad=1)
    ours = by_hand.evaluate(layer, variables, x)
    np.testing.assert_allclose(ours, np.concatenate([x, y], axis=-1), rtol=1e-4, atol=1e-5)
    assert not np.allclose(ours, np.concatenate([by_hand.relu(x), y], axis=-1), atol=1e-2)


def test_a_transition_in_numpy():
    transition = densenet_cifar(7, 3, compression=0.5)["trans1"]
    x = by_hand.noise(2, 6, 6, 19)
    variables = by_hand.scrambled(transition, x)
    y = by_hand.conv(activated(x, variables, "norm"), variables["params"]["conv"]["kernel"])
    assert y.shape[-1] == 9  # half of 19, rounded down
    mean = y.reshape(2, 3, 2, 3, 2, 9).mean((2, 4))
    np.testing.assert_allclose(by_hand.evaluate(transition, variables, x), mean, rtol=1e-4, atol=1e-5)


# --- what is rectified, what learns, what drops -----------------------------------------------------------------------


def test_what_the_paper_rectifies_is_rectified(member):
    net, variables, images = member
    relu = net.names[-3]
    names = (relu, "dense1_1/relu1", "dense1_1/conv2", "trans1/relu", "trans1/conv")
    found = features(net, variables, images, names)
    assert {name for name, y in found.items() if y.min() < 0} == {"dense1_1/conv2", "trans1/conv"}
    assert all(y.max() > 0 for y in found.values())


def test_a_gradient_reaches_every_leaf(member, strict):
    net, _, images = member
    assert by_hand.leaves_without_gradient(net, images) == []


def test_dropout_follows_every_convolution_but_the_first(key):
    net = densenet_cifar(10, 3, bottleneck=True, compression=0.5, dropout=0.2)
    rates = [module.dropout for module in by_hand.modules(net) if isinstance(module, Conv)]
    assert rates == [0.0] + 8 * [0.2]
    layer = net["dense1_1"]
    x = by_hand.noise(8, 8, 8, 6)
    train = compiled(lambda v, x, k: layer.apply(v, x, True, rngs={"dropout": k}, mutable=["batch_stats"])[0])
    y = train(by_hand.scrambled(layer, x), x, key)
    np.testing.assert_array_equal(y[..., :6], x)  # what is passed on is not dropped again
    assert abs(float((y[..., 6:] == 0).mean()) - 0.2) < 0.04


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_layers_cannot_be_skipped_since_what_follows_counts_their_maps():
    net = densenet_cifar(40, 12)
    images = jnp.zeros((1, *SMALL))
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    changes = {"dense2_3": r"\(16, 16, 184\) into \(16, 16, 196\)", "trans1": r"\(32, 32, 160\) into \(16, 16, 160\)"}
    for name, change in changes.items():
        with pytest.raises(CnnjaxError, match=f"'{name}' cannot be skipped: it turns {change}"):
            jax.eval_shape(lambda v, name=name: net.apply(v, images, skip=frozenset({name})), variables)


def test_a_network_loses_layers_is_cut_and_gets_a_new_head(member):
    net, variables, images = member
    cut = surgery.until(net, "dense2_1")
    inner = features(net, variables, images, ("dense2_1",))["dense2_1"]
    chex.assert_trees_all_close(applied(cut, variables, images).logits, inner, rtol=1e-5)
    other = surgery.with_head(net, 37)
    assert {name for name in net.names if other[name] != net[name]} == {"fc"}
    assert summarise(other, SMALL)["fc"].output == (37,)
    last = [name for name in net.names if name.startswith("dense")][-1]
    whole, without = summarise(net, SMALL), summarise(surgery.without(net, last), SMALL)
    assert without["fc"].weights == 10 * without["norm" + net.names[-2][-1]].output[-1] < whole["fc"].weights


def test_frozen_layers_keep_their_statistics(member):
    net, variables, images = member
    frozen = frozenset(net.names[: net.names.index("dense2_1")])
    _, updated = applied(net, variables, images, train=True, frozen=frozen, mutable=["batch_stats"])
    for name, before in variables["batch_stats"].items():
        pairs = zip(*map(jax.tree.leaves, (before, updated["batch_stats"][name])), strict=True)
        kept = [np.array_equal(a, b) for a, b in pairs]
        assert all(kept) if name in frozen else not any(kept), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(densenet, 122), "depth of a DenseNet 122\nlegal: 121, 169, 201, 264, 161"),
        (partial(densenet_cifar, 41), r"3n \+ 4 layers, not 41"),
        (partial(densenet_cifar, 103, bottleneck=True), r"6n \+ 4 layers, not 103"),
        (partial(densenet_cifar, compression=1.5), r"a share in \(0, 1\] of the maps, not 1.5"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(make, message):
    with pytest.raises(CnnjaxError, match=message):
        make()
