"""Network in Network, All-CNN, and the locally connected networks beside their convolutional twins."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, features, initial, narrow

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.all_cnn import BASE, VARIANTS, all_cnn
from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import AvgPool, Conv, LocalConv, MaxPool
from cnnjax.models.lenet import lenet5
from cnnjax.models.local import HIDDEN, lecun1989, unshared
from cnnjax.models.nin import nin

CIFAR = (32, 32, 3)


def weight_layers(net: Chain) -> tuple[str, ...]:
    return tuple(layer.name for layer in net.layers if hasattr(layer.module, "features"))


# --- Network in Network -----------------------------------------------------------------------------------------------


def test_nin_parameters_are_the_sum_by_hand():
    first = (75 * 192 + 192) + (192 * 160 + 160) + (160 * 96 + 96)
    second = (25 * 96 * 192 + 192) + 2 * (192 * 192 + 192)
    third = (9 * 192 * 192 + 192) + (192 * 192 + 192)
    assert first + second + third + (192 * 10 + 10) == 966_986 == summarise(nin(), CIFAR).params
    assert first + second + third + (192 * 100 + 100) == 984_356 == summarise(nin("cifar100"), CIFAR).params
    assert summarise(nin("imagenet"), (224, 224, 3)).params == 7_595_176


def test_nin_poolings_round_up():
    summary = summarise(nin(), CIFAR)
    assert [summary[name].output for name in ("pool1", "pool2", "cccp6", "pool3")] == [
        (16, 16, 96), (8, 8, 192), (8, 8, 10), (10,)]  # fmt: skip
    floor = surgery.replace(nin(), pool1=MaxPool(3, stride=2), pool2=AvgPool(3, stride=2))
    wrong = summarise(floor, CIFAR)
    assert [wrong[name].output for name in ("pool1", "pool2")] == [(15, 15, 96), (7, 7, 192)]
    assert wrong.params == summary.params and wrong.macs < summary.macs


@pytest.mark.parametrize(("size", "conv1"), [(224, 54), (227, 55)])
def test_nin_for_imagenet_has_the_same_poolings_at_both_crops(size, conv1):
    summary = summarise(nin("imagenet"), (size, size, 3))
    names = ("conv1", "pool1", "pool2", "pool3", "cccp8")
    assert [summary[name].output[0] for name in names] == [conv1, 27, 13, 6, 6]


@pytest.mark.parametrize(("data", "size"), [("cifar10", 32), ("imagenet", 67)])
def test_everything_in_nin_is_rectified_the_last_maps_too(data, size, key):
    net = narrow(nin(data))
    images = jax.random.normal(key, (2, size, size, 3))
    variables = initial(net, key, images)
    for name, maps in features(net, variables, images, weight_layers(net)).items():
        assert maps.min() == 0 and maps.max() > 0, name


def test_a_score_of_nin_is_the_mean_of_its_map(key):
    net = narrow(nin())
    images = jax.random.normal(key, (2, *CIFAR))
    variables = initial(net, key, images)
    maps = np.asarray(features(net, variables, images, ("cccp6",))["cccp6"])
    np.testing.assert_allclose(net.apply(variables, images).logits, maps.mean((1, 2)), rtol=1e-5)


# --- All-CNN ----------------------------------------------------------------------------------------------------------

# By hand: stages 1 and 2 of the base model, what Table 2 adds to them, stage 3.
# fmt: off
STAGES = {
    "A": (75 * 96 + 96)                    + (25 * 96 * 192 + 192),
    "B": (75 * 96 + 96) + (96 * 96 + 96)   + (25 * 96 * 192 + 192) + (192 * 192 + 192),
    "C": (27 * 96 + 96) + (9 * 96 * 96 + 96) + (9 * 96 * 192 + 192) + (9 * 192 * 192 + 192),
}
EXTRA = (9 * 96 * 96 + 96) + (9 * 192 * 192 + 192)
LAST = (9 * 192 * 192 + 192) + (192 * 192 + 192) + (192 * 10 + 10)
ADDED = {"Base-CNN": 0, "Strided-CNN": 0, "ConvPool-CNN": EXTRA, "All-CNN": EXTRA}
# fmt: on


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("base", BASE)
def test_all_cnn_parameters_are_the_sum_by_hand(base, variant):
    assert summarise(all_cnn(base, variant), CIFAR).params == STAGES[base] + ADDED[variant] + LAST


def test_all_cnn_c_counted_in_numpy():
    rows = [(3, 3, 96), (3, 96, 96), (3, 96, 96), (3, 96, 192), (3, 192, 192), (3, 192, 192),
            (3, 192, 192), (1, 192, 192), (1, 192, 10)]  # fmt: skip
    arrays = [array for k, i, o in rows for array in (np.empty((k, k, i, o)), np.empty(o))]
    assert sum(array.size for array in arrays) == 1_369_738 == summarise(all_cnn(), CIFAR).params


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("base", BASE)
def test_every_all_cnn_averages_6x6_maps(base, variant):
    net = all_cnn(base, variant)
    summary = summarise(net, CIFAR)
    before = {stage: net.names[net.names.index(f"drop{stage}") - 1] for stage in (1, 2)}
    assert summary[before[1]].output == (16, 16, 96)
    assert summary[before[2]].output == (8, 8, 192)
    assert summary["conv3_3"].output == (6, 6, 10)
    assert any(isinstance(layer.module, MaxPool) for layer in net.layers) == (variant in ("Base-CNN", "ConvPool-CNN"))


def test_all_cnn_variants_are_table_2():
    """Kernel and stride of each convolution, a pooling as "pool"."""

    def rows(variant):
        return " ".join(
            "pool" if isinstance(layer.module, MaxPool) else f"{layer.module.kernel}/{layer.module.stride}"
            for layer in all_cnn("C", variant).layers
            if isinstance(layer.module, (MaxPool, Conv))
        )

    assert rows("Base-CNN") == "3/1 3/1 pool 3/1 3/1 pool 3/1 1/1 1/1"
    assert rows("Strided-CNN") == "3/1 3/2 3/1 3/2 3/1 1/1 1/1"
    assert rows("ConvPool-CNN") == "3/1 3/1 3/1 pool 3/1 3/1 3/1 pool 3/1 1/1 1/1"
    assert rows("All-CNN") == "3/1 3/1 3/2 3/1 3/1 3/2 3/1 1/1 1/1"


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_in_all_cnn_is_rectified_and_drops_in_training_only(variant, key):
    net = narrow(all_cnn("C", variant))
    images = jax.random.normal(key, (4, *CIFAR))
    variables = initial(net, key, images)
    for name, maps in features(net, variables, images, weight_layers(net)).items():
        assert maps.min() == 0 and maps.max() > 0, name
    still = net.apply(variables, images).logits
    first, again, other = (
        applied(net, variables, images, train=True, dropout=jax.random.key(seed)).logits for seed in (1, 1, 2)
    )
    chex.assert_trees_all_equal(first, again)
    assert (first != other).any() and (first != still).any()


# --- locally connected ------------------------------------------------------------------------------------------------

# The report's counts, by hand: units · (connections of a unit + 1), and what is left of them where weights are shared.
# fmt: off
COUNTS = {
    #         connections                                          free parameters
    "Net-1": (10 * 257,                                            10 * 257),
    "Net-2": (12 * 257 + 10 * 13,                                  12 * 257 + 10 * 13),
    "Net-3": (64 * 10 + 16 * 26 + 10 * 17,                         64 * 10 + 16 * 26 + 10 * 17),
    "Net-4": (2 * 64 * 10 + 16 * (2 * 25 + 1) + 10 * 17,           2 * (9 + 64) + 16 * (2 * 25 + 1) + 10 * 17),
    "Net-5": (2 * 64 * 10 + 4 * 16 * (2 * 25 + 1) + 10 * 65,       2 * (9 + 64) + 4 * (2 * 25 + 16) + 10 * 65),
}
PUBLISHED = {
    "Net-1": (2570, 2570), "Net-2": (3214, 3214), "Net-3": (1226, 1226), "Net-4": (2266, 1132), "Net-5": (5194, 1060),
}
# fmt: on


@pytest.mark.parametrize("net", HIDDEN)
def test_networks_of_1989_have_the_reports_parameters_and_their_twins_its_connections(net):
    connections, free = COUNTS[net]
    assert (connections, free) == PUBLISHED[net]
    assert summarise(lecun1989(net), (16, 16, 1)).params == free
    assert summarise(unshared(lecun1989(net)), (16, 16, 1)).params == connections


def test_a_twin_costs_the_same_multiplications_and_has_the_same_units():
    net = lenet5()
    shared, twin = summarise(net, (32, 32, 1)), summarise(unshared(net), (32, 32, 1))
    assert [row.output for row in twin.rows] == [row.output for row in shared.rows]
    assert twin.macs == shared.macs
    # 28·28 and 10·10 positions, each with its own 6·(25 + 1) and 16·(150 + 1)
    assert twin.params == shared.params + (28 * 28 - 1) * 6 * 26 + (10 * 10 - 1) * 16 * 151


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pad", [0, 2, ((0, 1), (2, 1))])
def test_the_locally_connected_layer_is_the_formula(pad, stride, key):
    net = chain(local=LocalConv(4, (3, 2), stride=stride, pad=pad, act=None))
    x = jax.random.normal(key, (2, 7, 6, 3))
    params = initial(net, key, x)["params"]["local"]
    params = {"kernel": params["kernel"], "bias": jax.random.normal(key, params["bias"].shape)}
    kernel, bias = (np.asarray(params[kind], np.float64) for kind in ("kernel", "bias"))
    sides = pad if isinstance(pad, tuple) else ((pad, pad), (pad, pad))
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), *sides, (0, 0)))
    y = np.zeros((2, *kernel.shape[:2], 4))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            patch = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 2]
            assert patch.shape == (2, 3, 2, 3)
            y[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel[i, j].reshape(3, 2, 3, 4)) + bias[i, j]
    np.testing.assert_allclose(net.apply({"params": {"local": params}}, x).logits, y, rtol=1e-4, atol=1e-5)


def test_a_twin_with_the_shared_weights_at_every_position_is_the_convolution(key):
    net = chain(conv=Conv(5, 3, stride=2, pad=1), conv2=Conv(4, 3, pad=1))
    images = jax.random.normal(key, (2, 9, 8, 3))
    shared = initial(net, key, images)["params"]
    twin = unshared(net)
    shapes = jax.eval_shape(twin.init, key, images)["params"]
    copied = {
        name: {
            "kernel": jnp.broadcast_to(
                layer["kernel"].reshape(-1, layer["kernel"].shape[-1]), shapes[name]["kernel"].shape
            ),
            "bias": jnp.broadcast_to(layer["bias"], shapes[name]["bias"].shape),
        }
        for name, layer in shared.items()
    }
    logits = twin.apply({"params": copied}, images).logits
    chex.assert_trees_all_close(logits, net.apply({"params": shared}, images).logits, rtol=1e-5, atol=1e-5)
    moved = {**copied, "conv": {**copied["conv"], "kernel": copied["conv"]["kernel"].at[2, 1].add(1.0)}}
    change = twin.apply({"params": moved}, images).logits - logits
    touched = np.argwhere(np.abs(change).max((0, 3)) > 1e-6)
    assert touched.min(0).tolist() == [1, 0] and touched.max(0).tolist() == [3, 2]


def test_hidden_units_of_1989_are_squashed_and_each_has_a_bias(key):
    net = lecun1989("Net-5")
    images = jax.random.uniform(key, (2, 16, 16, 1), minval=-1.0)
    variables = initial(net, key, images)
    chex.assert_shape(variables["params"]["H1"]["kernel"], (3, 3, 1, 2))
    chex.assert_shape(variables["params"]["H1"]["bias"], (8, 8, 2))
    for maps in features(net, variables, images, ("H1", "H2")).values():
        assert np.abs(maps).max() < 1.7159 and maps.min() < 0 < maps.max()


def test_a_grouped_convolution_has_no_twin():
    with pytest.raises(CnnjaxError, match="no locally connected twin"):
        unshared(chain(conv=Conv(4, 3, groups=2)))


# --- surgery ----------------------------------------------------------------------------------------------------------

FAMILIES = {
    # a member, its images, a layer that may go, one that may be skipped, one that may not, where to cut
    "nin": (nin(), CIFAR, "cccp4", "cccp3", "conv2", "pool2"),
    "all_cnn": (all_cnn("C"), CIFAR, "conv2_2", "conv1_2", "conv1_3", "conv2_3"),
    "lecun1989": (unshared(lecun1989("Net-5")), (16, 16, 1), "H2", "output", "H1", "H1"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_works_on_every_family(family, key):
    net, shape, removed, skipped, misfit, cut = FAMILIES[family]
    net = narrow(net, by=2)
    images = jax.random.normal(key, (2, *shape))
    variables = initial(net, key, images)

    shorter = surgery.without(net, removed)
    fresh = initial(shorter, key, images)["params"]
    for name in set(fresh) - {net.names[net.names.index(removed) + 1]} - {"output"}:
        chex.assert_trees_all_equal(fresh[name], variables["params"][name])

    short = surgery.until(net, cut)
    inside = features(net, variables, images, (cut,))[cut]
    chex.assert_trees_all_close(short.apply(variables, images).logits, inside, rtol=1e-5, atol=1e-6)

    other = surgery.with_head(net, 7)
    chex.assert_shape(other.apply(initial(other, key, images), images).logits, (2, 7))

    everything = frozenset(net.names)
    chex.assert_trees_all_equal(
        net.apply(variables, images, train=True, frozen=everything).logits, net.apply(variables, images).logits
    )

    if skipped in net.names[:-1]:
        lesioned = net.apply(variables, images, skip=frozenset({skipped})).logits
        chex.assert_trees_all_equal(lesioned, surgery.without(net, skipped).apply(variables, images).logits)
    with pytest.raises(CnnjaxError, match=f"'{misfit}' cannot be skipped"):
        net.apply(variables, images, skip=frozenset({misfit}))


def test_unknown_variants_are_named_with_the_legal_ones():
    for make, legal in ((nin, "cifar10"), (all_cnn, "A, B, C"), (lecun1989, "Net-1")):
        with pytest.raises(CnnjaxError, match=f"'none'\nlegal: {legal}"):
            make("none")
    with pytest.raises(CnnjaxError, match="legal: Base-CNN, Strided-CNN"):
        all_cnn("C", "none")
