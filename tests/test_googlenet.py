"""GoogLeNet against Table 1 of its paper, its well-known wrong copies, and a second forward in NumPy."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, compiled, features, initial, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import Chain, Concat, chain
from cnnjax.models.googlenet import VARIANTS, AdaptiveAvgPool, googlenet
from cnnjax.models.layers import LRN, AvgPool, Conv, Dense, MaxPool, Norm

IMAGE = (224, 224, 3)
SMALL = (80, 80, 3)  # 5×5 at 4a, as the mean of the heads needs

# Table 1: the output (square, maps); the weights that the row's widths have; what the paper prints in K = 1,024 weights
# and in millions of operations, and whether that is so.
# fmt: off
TABLE_1 = (
    ("conv1",        112,   64,     9_408,    2.7, False,   34, False),
    ("conv2",         56,  192,   114_688,  112,   True,   360, True),  # with its 1×1 reduction
    ("inception_3a",  28,  256,   163_328,  159,   True,   128, True),
    ("inception_3b",  28,  480,   388_096,  380,   True,   304, True),
    ("inception_4a",  14,  512,   375_552,  364,   False,   73, True),
    ("inception_4b",  14,  512,   448_512,  437,   True,    88, True),
    ("inception_4c",  14,  512,   509_440,  463,   False,  100, True),
    ("inception_4d",  14,  528,   604_672,  580,   False,  119, True),
    ("inception_4e",  14,  832,   867_328,  840,   False,  170, True),
    ("inception_5a",   7,  832, 1_042_432, 1072,   False,   54, False),
    ("inception_5b",   7, 1024, 1_442_816, 1388,   False,   71, True),
)
# fmt: on
POOLS = {"pool1": (56, 56, 64), "pool2": (28, 28, 192), "pool3": (14, 14, 480), "pool4": (7, 7, 832), "pool5": (1024,)}


def modules(net: Chain) -> dict[str, object]:
    """Every layer by path, those inside the inception modules too."""
    found = {}
    for layer in net.layers:
        found[layer.name] = layer.module
        if isinstance(layer.module, Concat):
            found |= {
                f"{layer.name}/{inner.name}": inner.module for branch in layer.module.branches for inner in branch
            }
    return found


def weighted(net: Chain) -> tuple[str, ...]:
    return tuple(path for path, module in modules(net).items() if isinstance(module, (Conv, Dense)))


@functools.cache
def member(variant: str = "paper") -> tuple[Chain, dict, jax.Array]:
    """A narrow network (a module in stages 3 and 5, the two with heads in stage 4), its variables and images."""
    net = surgery.without(
        narrow(googlenet(variant)), "inception_3b", "inception_4b", "inception_4c", "inception_4e", "inception_5b"
    )
    images = jax.random.normal(jax.random.key(1), (2, *SMALL))
    return net, initial(net, jax.random.key(0), images), images


# --- the paper's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size", "maps", "weights", "thousands", "fits", "millions", "fit"), TABLE_1)
def test_each_row_has_the_weights_of_its_widths(name, size, maps, weights, thousands, fits, millions, fit):
    summary = summarise(googlenet(aux=False), IMAGE)
    counted = [summary[name], *([summary["conv2_reduce"]] if name == "conv2" else [])]
    assert counted[0].output == (size, size, maps)
    assert sum(row.weights for row in counted) == weights
    assert (abs(weights / 1024 - thousands) < 1.1) == fits
    assert (abs(sum(row.macs for row in counted) / 1e6 - millions) < 1) == fit


def test_totals_are_the_sums_by_hand():
    weights = sum(row[3] for row in TABLE_1) + 1024 * 1000
    inside = [module for path, module in modules(googlenet()).items() if "/" in path and isinstance(module, Conv)]
    biases = 64 + 64 + 192 + sum(module.features for module in inside) + 1000
    heads = sum(maps * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000 for maps in (512, 528))
    assert weights == 6_990_272
    assert weights + biases == 6_998_552 == summarise(googlenet(aux=False), IMAGE).params
    assert weights + biases + heads == 13_378_280 == summarise(googlenet(), IMAGE).params
    assert weights + 1000 == 6_991_272 == summarise(googlenet("weights_only", aux=False), IMAGE).params
    assert summarise(googlenet("torchvision", aux=False), IMAGE).params == 6_624_904
    assert summarise(googlenet("torchvision"), IMAGE).params == 13_004_888


@pytest.mark.parametrize("variant", VARIANTS)
def test_poolings_halve_the_map(variant):
    summary = summarise(googlenet(variant), IMAGE)
    assert {name: summary[name].output for name in POOLS} == POOLS


def test_layers_are_named_and_ordered_as_in_fig_3():
    names = googlenet().names
    assert names[:7] == ("conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2")
    assert names[-5:] == ("inception_5a", "inception_5b", "pool5", "drop5", "fc")
    assert [n[-2:] for n in names if n.startswith("inception")] == [
        "3a",
        "3b",
        "4a",
        "4b",
        "4c",
        "4d",
        "4e",
        "5a",
        "5b",
    ]
    assert "norm1" not in googlenet("torchvision").names


# --- the wrong networks -----------------------------------------------------------------------------------------------


def test_a_3x3_in_the_5x5_branch_is_found_out():
    """The slip of TF-slim's inception_v1, which torchvision inherited."""

    def shrink(module):
        return module.clone(kernel=3, pad=1) if getattr(module, "kernel", None) == 5 else module

    right = summarise(googlenet(aux=False), IMAGE)
    wrong = summarise(surgery.map_modules(googlenet(aux=False), shrink), IMAGE)
    fives = sum(math.prod(pair) for pair in ((16, 32), (32, 96), (16, 48), (24, 64), (24, 64), (32, 64), (32, 128),
                                             (32, 128), (48, 128)))  # fmt: skip
    assert right.params - wrong.params == (25 - 9) * fives
    assert [row.output for row in right.rows] == [row.output for row in wrong.rows]
    theirs = summarise(googlenet("torchvision", aux=False), IMAGE)
    assert sum(row.weights for row in theirs.rows) == sum(row.weights for row in wrong.rows)


def test_poolings_that_round_down_are_found_out():
    floor = surgery.map_modules(googlenet(aux=False), lambda m: m.clone(ceil=False) if isinstance(m, MaxPool) else m)
    wrong, right = summarise(floor, IMAGE), summarise(googlenet(aux=False), IMAGE)
    assert wrong.params == right.params
    assert {name: wrong[name].output for name in POOLS} != POOLS
    assert wrong["pool1"].output == (55, 55, 64)
    assert wrong.macs < right.macs


# --- a second forward -------------------------------------------------------------------------------------------------


def by_hand_conv(x, layer, pad=0):
    kernel, bias = np.asarray(layer["kernel"], np.float64), np.asarray(layer["bias"], np.float64)
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[-1])) + bias
    for i in range(size):
        for j in range(size):
            y += x[:, i : i + height, j : j + width] @ kernel[i, j]
    return np.maximum(y, 0)


def by_hand_pool(x, size, stride, pad=0):
    """Caffe's: the number of windows rounds up, a window at the edge takes what there is."""
    n = x.shape[1]
    count = math.ceil((n + 2 * pad - size) / stride) + 1
    edges = [(max(0, i * stride - pad), min(n, i * stride - pad + size)) for i in range(count)]
    return np.stack([np.stack([x[:, a:b, c:d].max((1, 2)) for c, d in edges], 1) for a, b in edges], 1)


def test_a_module_is_the_formula(key):
    block = narrow(googlenet(aux=False))["inception_3a"]
    net = chain(inception_3a=block)
    images = jax.random.normal(key, (2, 9, 9, 6))
    variables = initial(net, key, images)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim == 1 else leaf, variables)  # biases
    layers, x = variables["params"]["inception_3a"], np.asarray(images, np.float64)
    branches = (
        by_hand_conv(x, layers["1x1"]),
        by_hand_conv(by_hand_conv(x, layers["3x3_reduce"]), layers["3x3"], 1),
        by_hand_conv(by_hand_conv(x, layers["5x5_reduce"]), layers["5x5"], 2),
        by_hand_conv(by_hand_pool(x, 3, 1, 1), layers["pool_proj"]),
    )
    assert [branch.shape[-1] for branch in branches] == [64 // 8, 128 // 8, 32 // 8, 32 // 8]
    expected = np.concatenate(branches, axis=-1)
    np.testing.assert_allclose(applied(net, variables, images).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8, 11, 12])
def test_poolings_take_what_there_is_at_the_edge(size, key):
    x = jax.random.normal(key, (2, size, size, 3))
    net = chain(pool=googlenet()["pool1"])
    chex.assert_trees_all_equal(np.asarray(net.apply({}, x).logits), by_hand_pool(np.asarray(x), 3, 2))


def test_normalisation_is_caffes_formula(key):
    x = 30 * jax.random.normal(key, (2, 3, 3, 12))
    net = chain(norm1=googlenet()["norm1"])
    wide = np.asarray(x, np.float64)
    expected = np.empty_like(wide)
    for i in range(12):
        around = wide[..., max(0, i - 2) : i + 3]
        expected[..., i] = wide[..., i] / (1 + 1e-4 / 5 * (around**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(net.apply({}, x).logits, expected, rtol=1e-5)
    as_printed = chain(norm1=LRN()).apply({}, x).logits
    assert np.abs(as_printed / expected - 1).max() > 0.05


@pytest.mark.parametrize("size", [14, 15, 7, 3])
def test_adaptive_means_are_torchs_windows(size, key):
    x = np.asarray(jax.random.normal(key, (2, size, size + 1, 3)))
    given = chain(pool=AdaptiveAvgPool(4)).apply({}, jnp.asarray(x)).logits

    def edges(n):
        return [(math.floor(i * n / 4), math.ceil((i + 1) * n / 4)) for i in range(4)]

    expected = [[x[:, a:b, c:d].mean((1, 2)) for c, d in edges(size + 1)] for a, b in edges(size)]
    np.testing.assert_allclose(given, np.asarray(expected).transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
    if size == 14:
        assert edges(size) == [(0, 4), (3, 7), (7, 11), (10, 14)]  # not the 5×5 at stride 3 of the paper


# --- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "torchvision"])
def test_every_convolution_is_rectified(variant):
    net, variables, images = member(variant)
    hidden = weighted(net)[:-1]
    assert len(hidden) == 3 + 4 * 6
    for path, maps in features(net, variables, images, hidden).items():
        assert maps.min() == 0, path


def test_heads_are_there_in_training_only_and_drop_seven_tenths(key):
    net, variables, images = member()
    assert {"aux_4a", "aux_4d"} <= set(variables["params"])
    assert applied(net, variables, images).aux == {}
    out = applied(net, variables, images, train=True, dropout=key)
    assert {name: logits.shape for name, logits in out.aux.items()} == {"aux_4a": (2, 10), "aux_4d": (2, 10)}
    rates = [head.module.layers[2].module.dropout for head in googlenet().aux]
    assert rates == [0.7, 0.7] and googlenet()["drop5"].rate == 0.4 and googlenet("torchvision")["drop5"].rate == 0.2
    assert [type(head.module.layers[0].module) for head in googlenet("torchvision").aux] == [AdaptiveAvgPool] * 2
    assert googlenet().aux[0].module.layers[0].module == AvgPool(5, stride=3)


def test_the_heads_loss_reaches_what_lies_below_them_and_nothing_above(key):
    net, variables, images = member()
    frozen = frozenset({"aux_4a"})  # no dropout, so that no unit is dead by chance

    def loss(params):
        out = net.apply({"params": params}, images, train=True, frozen=frozen, rngs={"dropout": key})
        return (out.aux["aux_4a"] ** 2).sum()

    gradient = compiled(jax.grad(loss))(variables["params"])
    reached = {name for name, layer in gradient.items() if any(bool(leaf.any()) for leaf in jax.tree.leaves(layer))}
    assert reached == {"conv1", "conv2_reduce", "conv2", "inception_3a", "inception_4a", "aux_4a"}


def test_torchvisions_convolutions_are_normalised_and_have_no_bias():
    for path, module in modules(googlenet("torchvision")).items():
        if isinstance(module, Conv):
            assert module.norm == Norm(epsilon=1e-3) and not module.bias, path
        if isinstance(module, Dense):
            assert module.norm is None and module.bias
    assert googlenet("torchvision")["pool4"] == MaxPool(2, stride=2, ceil=True)


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_a_head_goes_with_its_layer():
    net = googlenet()
    assert [head.name for head in surgery.without(net, "inception_4a").aux] == ["aux_4d"]
    assert [head.name for head in surgery.until(net, "inception_4c").aux] == ["aux_4a"]
    assert googlenet(aux=False).aux == () and googlenet(aux=False).layers == net.layers


def test_modules_of_equal_width_are_skipped_and_others_say_why(key):
    net = surgery.until(narrow(googlenet(aux=False)), "inception_4c")
    net = surgery.without(net, "inception_3b")
    images = jax.random.normal(key, (2, 64, 64, 3))
    variables = initial(net, key, images)
    lesioned = applied(net, variables, images, skip=frozenset({"inception_4b", "inception_4c"})).logits
    without = applied(surgery.without(net, "inception_4b", "inception_4c"), variables, images).logits
    chex.assert_trees_all_close(lesioned, without, rtol=1e-5)
    with pytest.raises(CnnjaxError, match=r"'inception_4a' cannot be skipped: it turns \(4, 4, 32\) into \(4, 4, 64\)"):
        applied(net, variables, images, skip=frozenset({"inception_4a"}))


def test_removed_modules_leave_the_others_with_the_same_initial_weights(key):
    net, variables, images = member()
    whole = variables["params"]
    rest = initial(surgery.without(net, "inception_4d"), key, images)["params"]
    assert set(whole) - set(rest) == {"inception_4d", "aux_4d"}
    for name in set(rest) - {"inception_5a"}:  # which sees other maps now
        chex.assert_trees_all_equal(rest[name], whole[name])


def test_a_new_head_is_new_on_the_auxiliary_heads_too(key):
    net, _, images = member()
    net = surgery.with_head(net, 7)
    variables = jax.eval_shape(net.init, key, images)
    out = jax.eval_shape(lambda v: net.apply(v, images, train=True, rngs={"dropout": key}), variables)
    assert {out.logits.shape, *(logits.shape for logits in out.aux.values())} == {(2, 7)}


def test_frozen_modules_act_as_in_inference():
    net, variables, images = member("torchvision")
    frozen = frozenset({*net.names, "aux_4a", "aux_4d"})
    still = applied(net, variables, images, train=True, frozen=frozen).logits
    chex.assert_trees_all_equal(still, applied(net, variables, images).logits)
    _, updated = applied(net, variables, images, train=True, frozen=frozen - {"inception_4a"}, mutable=["batch_stats"])
    moved = {
        name
        for name, before in variables["batch_stats"].items()
        if any(
            bool((a != b).any())
            for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(updated["batch_stats"][name]), strict=True)
        )
    }
    assert moved == {"inception_4a"}


def test_an_unknown_variant_is_named_with_the_legal_ones():
    with pytest.raises(CnnjaxError, match=r"'slim'\nlegal: paper, weights_only, torchvision"):
        googlenet("slim")


def test_images_too_small_for_the_heads_are_refused_by_name():
    with pytest.raises(CnnjaxError, match="aux_4a"):
        summarise(googlenet(), (64, 64, 3))
