"""Inception-BN, v2 and v3 against released code, wrong copies, an independent forward, in training, under surgery."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import conv, evaluate, modules, noise, norm, relu, scrambled
from narrow import applied, compiled, initial
from published import FACTS

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import Chain, Output
from cnnjax.models.inception_bn import inception_bn, inception_v2
from cnnjax.models.inception_v3 import FIGURE_7, REDUCTION_7A, C, figure_5, figure_6, inception_v3, mixed
from cnnjax.models.layers import AvgPool, Conv, MaxPool, Norm

V3 = (299, 299, 3)


def small(net: Chain, *drop: str) -> Chain:
    """A member with a sixteenth of the maps, without some of the modules that repeat."""
    return surgery.with_head(surgery.with_width(surgery.without(net, *drop), 1 / 16), 5)


def variables_of(net: Chain, image_shape: tuple[int, int, int]) -> dict:
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda key, images: net.init({"params": key}, images), jax.random.key(0), images)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- counts that others published -------------------------------------------------------------------------------------


def test_inception_v2_has_the_variables_that_slims_own_test_counts():
    """Weights, one bias, β and both running statistics up to the last module."""
    variables = variables_of(surgery.until(inception_v2(), "inception_5b"), (224, 224, 3))
    assert size(variables) == 10_173_112
    assert size(variables["params"]["conv1"]) == 7 * 7 * 3 * 8 + 24 * 64 + 64
    assert "conv1" not in variables["batch_stats"]


def test_inception_v3_without_scale_has_the_variables_that_slim_and_keras_count():
    net = inception_v3(aux=False, scale=False)
    variables = variables_of(net, V3)
    assert size(variables) == FACTS["keras"]["InceptionV3"]["total"] == 23_851_784
    assert size(variables) - size(variables["params"]["fc"]) == 21_802_784
    assert not any("scale" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(variables))


def test_the_head_of_inception_v3_costs_what_its_rows_add_up_to():
    whole = summarise(inception_v3(), V3)
    assert whole.params == 23_834_568 + whole["AuxLogits"].params
    assert whole["AuxLogits"].params == 768 * 128 + 2 * 128 + 25 * 128 * 768 + 2 * 768 + 768 * 1000 + 1000
    assert whole["AuxLogits"].macs == 25 * 768 * 128 + 25 * 128 * 768 + 768 * 1000


# --- what counts cannot see -------------------------------------------------------------------------------------------

# Branches of the released code, row by row: the names, which tell the kernels, and the numbers of filters.
# fmt: off
RELEASED = {
    ("Mixed_5b", 1): {"Conv2d_0a_1x1": 48,  "Conv2d_0b_5x5": 64},
    ("Mixed_5b", 2): {"Conv2d_0a_1x1": 64,  "Conv2d_0b_3x3": 96,  "Conv2d_0c_3x3": 96},
    ("Mixed_5c", 3): {"Conv2d_0b_1x1": 64},
    ("Mixed_6a", 1): {"Conv2d_0a_1x1": 64,  "Conv2d_0b_3x3": 96,  "Conv2d_1a_3x3": 96},
    ("Mixed_6b", 1): {"Conv2d_0a_1x1": 128, "Conv2d_0b_1x7": 128, "Conv2d_0c_7x1": 192},
    ("Mixed_6b", 2): {"Conv2d_0a_1x1": 128, "Conv2d_0b_7x1": 128, "Conv2d_0c_1x7": 128, "Conv2d_0d_7x1": 128,
                      "Conv2d_0e_1x7": 192},
    ("Mixed_7a", 1): {"Conv2d_0a_1x1": 192, "Conv2d_0b_1x7": 192, "Conv2d_0c_7x1": 192, "Conv2d_1a_3x3": 192},
    ("Mixed_7b", 1): {"Conv2d_0a_1x1": 384, "fork/Conv2d_0b_1x3": 384, "fork/Conv2d_0c_3x1": 384},
    ("Mixed_7b", 2): {"Conv2d_0a_1x1": 448, "Conv2d_0b_3x3": 384, "fork/Conv2d_0c_1x3": 384, "fork/Conv2d_0d_3x1": 384},
}
# fmt: on


def kernels(params: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of the kernels in a tree by their path."""
    return {
        "/".join(key.key for key in path[:-1]): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[-1].key == "kernel"
    }


def test_inside_its_modules_inception_v3_has_the_names_and_kernels_of_the_released_code():
    params = variables_of(inception_v3(aux=False), V3)["params"]
    for (module, branch), steps in RELEASED.items():
        found = kernels(params[module][f"Branch_{branch}"])
        assert {name: shape[-1] for name, shape in found.items()} == steps
        for name, (height, width, *_) in found.items():
            assert name.endswith(f"_{height}x{width}")


def test_modules_of_inception_bn_pool_by_mean_or_maximum_as_in_figure_5():
    net = inception_bn()
    pools = {name: net[name].branches[-1][0].module for name in net.names if name.startswith("inception")}
    by_maximum = {name for name, pool in pools.items() if isinstance(pool, MaxPool)}
    assert by_maximum == {"inception_3c", "inception_4e", "inception_5b"}
    assert {name for name, pool in pools.items() if pool.stride == 2} == {"inception_3c", "inception_4e"}


def test_the_separable_convolution_makes_eight_maps_of_each_colour():
    conv1 = inception_v2()["conv1"].layers[0].module
    images = noise(1, 14, 14, 3)
    variables = scrambled(conv1, images)
    change = evaluate(conv1, variables, images) - evaluate(conv1, variables, images * np.float32([1, 0, 1]))
    changed = np.abs(change).max((0, 1, 2)) > 0
    assert np.flatnonzero(changed).tolist() == list(range(8, 16))


# --- an independent forward -------------------------------------------------------------------------------------------


def normalised(x: np.ndarray, row: dict, stats: dict, *, stride: int = 1) -> np.ndarray:
    """relu(BN(convolution)); it keeps the map's size, or is not padded where it has a stride."""
    h, w = row["kernel"].shape[:2] if stride == 1 else (1, 1)
    x = np.pad(x, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    return relu(norm(conv(x, row["kernel"], stride=stride), row["norm"], stats["norm"], epsilon=1e-3))


def mean_of_neighbours(x: np.ndarray, count_padding: bool) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = x[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            out[:, i, j] = window.sum((1, 2)) / (9 if count_padding else window.shape[1] * window.shape[2])
    return out


def in_numpy(grid: str, params: dict, stats: dict, x: np.ndarray, mean: np.ndarray) -> list[np.ndarray]:
    """The branches of a module on `x`; `mean` is what its pooling gives."""

    def along(branch: int, x: np.ndarray, *steps: str, stride: int = 1) -> np.ndarray:
        for i, step in enumerate(steps):
            row, its = params[f"Branch_{branch}"], stats[f"Branch_{branch}"]
            for part in step.split("/"):
                row, its = row[part], its[part]
            x = normalised(x, row, its, stride=stride if i == len(steps) - 1 else 1)
        return x

    first = "Conv2d_0a_1x1"
    if grid == "35":
        return [
            along(0, x, first),
            along(1, x, first, "Conv2d_0b_5x5"),
            along(2, x, first, "Conv2d_0b_3x3", "Conv2d_0c_3x3"),
            along(3, mean, "Conv2d_0b_1x1"),
        ]
    if grid == "17":
        return [
            along(0, x, first),
            along(1, x, first, "Conv2d_0b_1x7", "Conv2d_0c_7x1"),
            along(2, x, first, "Conv2d_0b_7x1", "Conv2d_0c_1x7", "Conv2d_0d_7x1", "Conv2d_0e_1x7"),
            along(3, mean, "Conv2d_0b_1x1"),
        ]
    if grid == "8":
        one, two = along(1, x, first), along(2, x, first, "Conv2d_0b_3x3")
        return [
            along(0, x, first),
            along(1, one, "fork/Conv2d_0b_1x3"),
            along(1, one, "fork/Conv2d_0c_3x1"),
            along(2, two, "fork/Conv2d_0c_1x3"),
            along(2, two, "fork/Conv2d_0d_3x1"),
            along(3, mean, "Conv2d_0b_1x1"),
        ]
    return [
        along(0, x, first, "Conv2d_1a_3x3", stride=2),
        along(1, x, first, "Conv2d_0b_1x7", "Conv2d_0c_7x1", "Conv2d_1a_3x3", stride=2),
        np.stack([x[:, i : i + 7 : 2, j : j + 4 : 2] for i in range(3) for j in range(3)]).max(0),
    ]


MODULES = {"35": figure_5(64, proj=32), "17": figure_6(128), "8": FIGURE_7, "17 to 8": REDUCTION_7A}


def thin(features: int, *args, **kwargs) -> Conv:
    return Conv(features // 16, *args, bias=False, norm=Norm(epsilon=1e-3), **kwargs)


@pytest.mark.parametrize("grid", MODULES)
def test_a_module_gives_what_numpy_gives(grid):
    """Maps that are not square, so that 1×7 for 7×1 would show."""
    x = noise(2, 9, 6, 5)
    variables = scrambled(mixed(MODULES[grid], thin), x)
    for count_padding in (False, True):
        module = mixed(MODULES[grid], thin, count_padding=count_padding)
        mean = mean_of_neighbours(x, count_padding)
        branches = in_numpy(grid, variables["params"], variables["batch_stats"], x, mean)
        y = evaluate(module, variables, x)
        np.testing.assert_allclose(y, np.concatenate(branches, -1), rtol=1e-4, atol=1e-4)


# --- known-wrong copies -----------------------------------------------------------------------------------------------


def test_two_3x3_in_the_place_of_a_5x5_are_found_out():
    """Figure 5 of the paper has them; the released code does not."""
    net = inception_v3(aux=False)
    branches = figure_5(64, proj=32)
    factorised = (branches[0], (C(1, 48), C(3, 64), C(3, 64)), *branches[2:])
    wrong = surgery.replace(net, Mixed_5b=mixed(factorised, partial(Conv, bias=False, norm=Norm())))
    difference = (9 * 48 * 64 + 9 * 64 * 64 + 4 * 64) - (25 * 48 * 64 + 2 * 64)
    assert summarise(wrong, V3).params == 23_834_568 + difference != 23_834_568


def test_padded_reductions_are_found_out_by_the_stages_alone():
    net = inception_v3(aux=False)

    def pad(module):
        strided = isinstance(module, (Conv, MaxPool)) and module.stride == 2
        return module.clone(pad="SAME") if strided else module

    wrong = summarise(surgery.replace(net, Mixed_6a=surgery.map_modules(net, pad)["Mixed_6a"]), V3)
    assert (wrong.params, wrong["Mixed_6a"].output) == (23_834_568, (18, 18, 768))
    assert summarise(net, V3)["Mixed_6a"].output == (17, 17, 768)


def test_printed_projections_of_inception_bn_contradict_its_printed_widths():
    x = jnp.zeros((1, 14, 14, 576))
    for literal, width in ((True, 608), (False, 576)):
        for name in ("inception_4c", "inception_4d"):
            module = inception_bn(table_literal=literal)[name]
            y, _ = jax.eval_shape(partial(module.init_with_output, train=False), jax.random.key(0), x)
            assert y.shape == (1, 14, 14, width)


def test_counting_the_padding_changes_the_edges_only():
    x = noise(1, 6, 6, 2)
    mean, counted = (evaluate(AvgPool(3, 1, 1, count_padding=c), {}, x) for c in (False, True))
    np.testing.assert_allclose(mean[:, 1:-1, 1:-1], counted[:, 1:-1, 1:-1], rtol=1e-5)
    np.testing.assert_allclose(counted[:, 0, 1:-1], mean[:, 0, 1:-1] * 6 / 9, rtol=1e-5)
    assert {m.count_padding for m in means(inception_v3(count_padding=True))} == {True}
    assert {m.count_padding for m in means(inception_v3(aux=False))} == {False}
    assert {m.count_padding for m in means(inception_bn())} == {True}
    assert {m.count_padding for m in means(inception_v2())} == {False}


def means(net: Chain) -> list[AvgPool]:
    """Every mean in a module (not that of the head for training, which pads nothing)."""
    return [module for module in modules(net) if isinstance(module, AvgPool) and module.window == 3]


# --- narrow members in training ---------------------------------------------------------------------------------------

MEMBERS = {
    "bn": (inception_v2(), ("inception_3b", *(f"inception_{i}" for i in ("4a", "4b", "4c", "4d", "5a"))), 64),
    "v3": (inception_v3(aux=False), ("Mixed_5c", "Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"), 107),
}


def check_training(net: Chain, side: int, key: jax.Array, linear: tuple[str, ...]) -> None:
    """One compiled step: every convolution but the `linear` ones is rectified, and a gradient reaches every leaf."""
    images = noise(3, side, side, 3)
    variables = scrambled(net, images)

    def loss(params):
        out, state = net.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": key},
            capture_intermediates=lambda module, method: isinstance(module, Conv) and method == "__call__",
            mutable=["batch_stats", "intermediates"],
        )
        return jnp.square(out.logits - 1).sum(), state["intermediates"]

    gradient, maps = jax.device_get(compiled(jax.grad(loss, has_aux=True))(variables["params"]))
    check_gradient(gradient)
    for path, y in jax.tree.leaves_with_path(maps):
        name = [part.key for part in path if hasattr(part, "key")][-2]
        assert (y.min() < 0) if name in linear else (y.min() == 0 and y.max() > 0), jax.tree_util.keystr(path)


def check_gradient(gradient: dict) -> None:
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("member", MEMBERS)
def test_convolutions_are_rectified_and_a_gradient_reaches_every_leaf(member, key, strict):
    net, repeated, side = MEMBERS[member]
    check_training(small(net, *repeated), side, key, linear=("depthwise",))


@pytest.fixture(scope="module")
def tail():
    """A narrow Inception-v3 from Mixed_5b on, which takes images of 35×35 as if they were maps."""
    net = inception_v3()
    stem = net.names[: net.names.index("Mixed_5b")]
    net = small(net, *stem, "Mixed_5c", "Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_7c")
    images = noise(2, 35, 35, 3)
    return net, scrambled(net, images), images


def test_the_head_for_training_answers_in_training_only(tail, key):
    net, variables, images = tail

    def logits(train):
        rngs = {"dropout": key}
        return jax.eval_shape(lambda: net.apply(variables, images, train=train, rngs=rngs, mutable=["batch_stats"])[0])

    assert logits(False) == Output(jax.ShapeDtypeStruct((2, 5), jnp.float32), {})
    assert logits(True).aux == {"AuxLogits": jax.ShapeDtypeStruct((2, 5), jnp.float32)}


def test_a_gradient_of_the_head_reaches_its_leaves_and_what_is_before_it(tail, key):
    net, variables, images = tail
    head = surgery.until(net, "Mixed_6e")
    variables = {kind: {name: tree[name] for name in (*head.names, "AuxLogits")} for kind, tree in variables.items()}

    def loss(params):
        out, _ = head.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.square(out.aux["AuxLogits"] - 1).sum()

    check_gradient(jax.device_get(compiled(jax.grad(loss))(variables["params"])))


# --- surgery ----------------------------------------------------------------------------------------------------------


def test_removed_modules_leave_the_others_with_the_same_initial_weights(key):
    net = small(inception_v3())
    net = surgery.without(net, *net.names[net.names.index("Mixed_6a") : net.names.index("gap")])
    shorter = surgery.without(net, "Mixed_5d")
    images = jnp.zeros((1, 43, 43, 3))
    before, after = (initial(some, key, images)["params"] for some in (net, shorter))
    assert set(before) - set(after) == {"Mixed_5d"}
    for name, layer in after.items():
        chex.assert_trees_all_equal(layer, before[name])


def test_the_head_goes_with_its_module():
    assert surgery.without(inception_v3(), "Mixed_6e").aux == ()
    assert surgery.until(inception_v3(), "Mixed_6d").aux == ()
    assert [head.name for head in surgery.until(inception_v3(), "Mixed_6e").aux] == ["AuxLogits"]
    assert surgery.until(inception_bn(), "inception_3c").names[-1] == "inception_3c"


def test_a_new_head_is_made_for_the_training_head_too():
    net = surgery.with_head(inception_v3(), 7)
    assert net == inception_v3(7)
    assert surgery.with_head(inception_v2(), 1001) == inception_v2(1001)


def test_frozen_modules_keep_their_statistics(tail, key):
    net, variables, images = tail
    frozen = frozenset({"Mixed_5b", "Mixed_6a", "AuxLogits"})

    _, after = applied(net, variables, images, dropout=key, train=True, frozen=frozen, mutable=["batch_stats"])
    for name, before in variables["batch_stats"].items():
        kept = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, after["batch_stats"][name])), strict=True)
        ]
        assert all(kept) if name in frozen else not any(kept), name


def test_a_module_is_skipped_where_its_shape_allows():
    net = surgery.until(small(inception_v3(aux=False)), "Mixed_5d")
    images = noise(1, 43, 43, 3)
    variables = scrambled(net, images)
    lesioned = applied(net, variables, images, skip=frozenset({"Mixed_5d"})).logits
    shorter = applied(surgery.without(net, "Mixed_5d"), variables, images).logits
    chex.assert_trees_all_close(lesioned, shorter, rtol=1e-5)
    with pytest.raises(CnnjaxError, match=r"'Mixed_5b' cannot be skipped: it turns \(3, 3, 12\) into \(3, 3, 16\)"):
        jax.eval_shape(lambda: net.apply(variables, images, skip=frozenset({"Mixed_5b"})))


def test_too_small_an_image_is_an_error_that_says_so():
    with pytest.raises(CnnjaxError, match=r"layer Mixed_7a: .* does not fit an input of 2×2"):
        variables_of(inception_v3(aux=False), (63, 63, 3))
    with pytest.raises(CnnjaxError, match="a 5×5 window does not fit"):
        variables_of(inception_v3(), (224, 224, 3))
