"""Inception-v4 and Inception-ResNet: tables, wrong copies, an independent forward, training, surgery."""

from functools import partial

import chex
import jax
import numpy as np
import pytest
from by_hand import conv, evaluate, modules, noise, relu, scrambled
from narrow import applied, initial
from published import FACTS
from test_inception import check_training, kernels, normalised, size, small, variables_of

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.chain import Chain, Residual
from cnnjax.models.inception_v4 import NETWORKS, inception_resnet, inception_v4
from cnnjax.models.layers import AvgPool

IMAGE = (299, 299, 3)
BLOCKS = tuple(f"Inception-ResNet-{kind}" for kind in "ABC")


def repeated(net: Chain) -> list[str]:
    """The names of the modules that repeat the one before them, but the last of the released code, which is another."""
    numbered = [name for name in net.names if name[-2:] != "_1" and "_" in name and name.startswith("Inception")]
    return [name for name in numbered if net[name] == net[f"{name.rsplit('_', 1)[0]}_1"]]


# --- counts and tables ------------------------------------------------------------------------------------------------


def test_the_released_code_without_scale_has_keras_total():
    net = inception_resnet("v2_released", scale=False)
    assert size(variables_of(net, IMAGE)) == FACTS["keras"]["InceptionResNetV2"]["total"] == 55_873_736


@pytest.mark.parametrize("version", NETWORKS)
def test_each_network_has_the_blocks_of_figure_15_or_of_the_released_code(version):
    names = inception_resnet(version).names
    counts = tuple(sum(name.startswith(f"{kind}_") for name in names) for kind in BLOCKS)
    assert counts == ((10, 20, 10) if version == "v2_released" else (5, 10, 5))


@pytest.mark.parametrize("version", NETWORKS)
def test_residuals_are_scaled_before_they_are_added_and_rectified_after(version):
    net = inception_resnet(version)
    found = {kind: {(net[n].scale, net[n].act) for n in net.names if n.startswith(kind)} for kind in BLOCKS}
    usual = {kind: {(scale, "relu")} for kind, scale in zip(BLOCKS, (0.17, 0.10, 0.20), strict=True)}
    if version == "v2_released":
        last = net["Inception-ResNet-C_10"]
        assert (last.scale, last.act) == (1.0, None)
        usual["Inception-ResNet-C"].add((1.0, None))
    assert found == usual
    unscaled = inception_resnet(version, residual_scale=(1.0, 1.0, 1.0))
    assert {unscaled[name].scale for name in unscaled.names if name.startswith(BLOCKS)} == {1.0}


# Branches of the released code, row by row: the names, which tell the kernels, and the numbers of filters.
# fmt: off
RELEASED = {
    ("v4", "Mixed_3a",    1): {"Conv2d_1a_3x3": 96},
    ("v4", "Mixed_4a",    0): {"Conv2d_0a_1x1": 64,  "Conv2d_1a_3x3": 96},
    ("v4", "Mixed_4a",    1): {"Conv2d_0a_1x1": 64,  "Conv2d_0b_1x7": 64,  "Conv2d_0c_7x1": 64,  "Conv2d_1a_3x3": 96},
    ("v4", "Mixed_5a",    0): {"Conv2d_1a_3x3": 192},
    ("v4", "Reduction-A", 0): {"Conv2d_1a_3x3": 384},
    ("v4", "Reduction-A", 1): {"Conv2d_0a_1x1": 192, "Conv2d_0b_3x3": 224, "Conv2d_1a_3x3": 256},
    ("v4", "Inception-B_1", 1): {"Conv2d_0a_1x1": 192, "Conv2d_0b_1x7": 224, "Conv2d_0c_7x1": 256},
    ("v4", "Inception-B_7", 2): {"Conv2d_0a_1x1": 192, "Conv2d_0b_7x1": 192, "Conv2d_0c_1x7": 224, "Conv2d_0d_7x1": 224,
                                 "Conv2d_0e_1x7": 256},
    ("v4", "Reduction-B", 1): {"Conv2d_0a_1x1": 256, "Conv2d_0b_1x7": 256, "Conv2d_0c_7x1": 320, "Conv2d_1a_3x3": 320},
    ("v4", "Inception-C_3", 1): {"Conv2d_0a_1x1": 384, "fork/Conv2d_0b_1x3": 256, "fork/Conv2d_0c_3x1": 256},
    ("v4", "Inception-C_3", 2): {"Conv2d_0a_1x1": 384, "Conv2d_0b_3x1": 448, "Conv2d_0c_1x3": 512,
                                 "fork/Conv2d_0d_1x3": 256, "fork/Conv2d_0e_3x1": 256},
    ("v2_released", "Mixed_5b", 1): {"Conv2d_0a_1x1": 48, "Conv2d_0b_5x5": 64},
    ("v2_released", "Inception-ResNet-A_10", 2): {"Conv2d_0a_1x1": 32, "Conv2d_0b_3x3": 48, "Conv2d_0c_3x3": 64},
    ("v2_released", "Inception-ResNet-B_20", 1): {"Conv2d_0a_1x1": 128, "Conv2d_0b_1x7": 160, "Conv2d_0c_7x1": 192},
    ("v2_released", "Inception-ResNet-C_10", 1): {"Conv2d_0a_1x1": 192, "Conv2d_0b_1x3": 224, "Conv2d_0c_3x1": 256},
    ("v2_released", "Reduction-B", 2): {"Conv2d_0a_1x1": 256, "Conv2d_0b_3x3": 288, "Conv2d_1a_3x3": 320},
}
# fmt: on


def test_modules_have_the_names_and_kernels_of_the_released_code():
    nets = {"v4": inception_v4(), "v2_released": inception_resnet("v2_released")}
    params = {version: variables_of(net, IMAGE)["params"] for version, net in nets.items()}
    for (version, module, branch), steps in RELEASED.items():
        tree = params[version][module]
        found = kernels(tree.get("mixed", tree)[f"Branch_{branch}"])
        assert {name: shape[-1] for name, shape in found.items()} == steps
        for name, (height, width, *_) in found.items():
            assert name.endswith(f"_{height}x{width}")


def test_means_leave_the_padding_out():
    nets = (inception_v4(), inception_resnet("v2_released"))
    assert {m.count_padding for net in nets for m in modules(net) if isinstance(m, AvgPool)} == {False}


# --- an independent forward -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_residual_block_gives_what_numpy_gives(kind):
    block = surgery.with_width(inception_resnet("v2"), 1 / 16)[f"{kind}_1"]
    x = noise(2, 8, 5, {"A": 24, "B": 72, "C": 134}[kind[-1]])
    variables = scrambled(block, x)
    rows, stats = variables["params"]["mixed"], variables["batch_stats"]["mixed"]

    def along(branch: int, *steps: str) -> np.ndarray:
        y = x
        for step in steps:
            y = normalised(y, rows[f"Branch_{branch}"][step], stats[f"Branch_{branch}"][step])
        return y

    first, n = "Conv2d_0a_1x1", 7 if kind[-1] == "B" else 3
    if kind[-1] == "A":
        branches = [
            along(0, first),
            along(1, first, "Conv2d_0b_3x3"),
            along(2, first, "Conv2d_0b_3x3", "Conv2d_0c_3x3"),
        ]
    else:
        branches = [along(0, first), along(1, first, f"Conv2d_0b_1x{n}", f"Conv2d_0c_{n}x1")]
    expansion = variables["params"]["up"]
    up = conv(np.concatenate(branches, -1), expansion["kernel"]) + expansion["bias"]
    expected = relu(x + {"A": 0.17, "B": 0.10, "C": 0.20}[kind[-1]] * up)
    np.testing.assert_allclose(evaluate(block, variables, x), expected, rtol=1e-4, atol=1e-4)
    linear = evaluate(block.clone(act=None, scale=1.0), variables, x)
    np.testing.assert_allclose(linear, x + up, rtol=1e-4, atol=1e-4)


# --- known-wrong copies -----------------------------------------------------------------------------------------------


def edited(net: Chain, edit) -> Chain:
    return surgery.map_modules(net, lambda m: edit(m) if isinstance(m, Residual) else m)


def test_an_expansion_without_bias_is_found_out():
    def no_bias(block):
        mixed, up = block.body
        return block.clone(body=(mixed, type(up)(up.name, up.module.clone(bias=False))))

    wrong = summarise(edited(inception_resnet("v2_released"), no_bias), IMAGE)
    assert wrong.params == 55_843_464 - (10 * 320 + 20 * 1088 + 10 * 2080) != 55_843_464


@pytest.mark.parametrize("module, printed", [("Inception-ResNet-B_1", 1154), ("Inception-ResNet-C_1", 2048)])
def test_printed_widths_of_inception_resnet_v2_cannot_be_added(module, printed):
    """Figures 17 and 19; what the modules get are 1152 and 2144 maps."""

    def expand(block):
        mixed, up = block.body
        return block.clone(body=(mixed, type(up)(up.name, up.module.clone(features=printed))))

    net = inception_resnet("v2")
    wrong = surgery.replace(net, **{module: expand(net[module])})
    with pytest.raises(CnnjaxError, match=f"layer {module}: a shortcut of .* cannot be added to a body of .*{printed}"):
        summarise(wrong, IMAGE)


def test_a_padded_stem_is_found_out_by_the_stages_alone():
    net = inception_v4()
    wrong = surgery.replace(net, Conv2d_2a_3x3=net["Conv2d_2a_3x3"].clone(pad=1))
    right, wrong = (summarise(surgery.until(some, "Mixed_5a"), IMAGE) for some in (net, wrong))
    assert right.params == wrong.params
    assert right["Mixed_5a"].output == wrong["Mixed_5a"].output == (35, 35, 384)  # the rounding hides it from here on
    assert right["Mixed_3a"].output == (73, 73, 160) != wrong["Mixed_3a"].output


# --- narrow members in training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [inception_v4, partial(inception_resnet, "v2_released")], ids=["v4", "resnet"])
def test_convolutions_are_rectified_and_a_gradient_reaches_every_leaf(make, key, strict):
    net = make()
    check_training(small(net, *repeated(net)), 107, key, linear=("up",))


# --- surgery ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks():
    """A narrow Inception-ResNet-v1 up to its second Inception-ResNet-B, without the stem; images are 32 maps of 9×9."""
    net = small(surgery.until(inception_resnet("v1"), "Inception-ResNet-B_2"))
    stem = net.names[: net.names.index("Inception-ResNet-A_4")]
    net = surgery.without(net, *stem)
    images = noise(1, 9, 9, 16)
    return net, scrambled(net, images), images


def test_a_residual_block_is_skipped_and_a_reduction_is_not(blocks):
    net, variables, images = blocks
    for name in ("Inception-ResNet-A_5", "Inception-ResNet-B_1"):
        lesioned = applied(net, variables, images, skip=frozenset({name})).logits
        shorter = applied(surgery.without(net, name), variables, images).logits
        chex.assert_trees_all_close(lesioned, shorter, rtol=1e-5)
    with pytest.raises(CnnjaxError, match=r"'Reduction-A' cannot be skipped: it turns \(9, 9, 16\) into \(4, 4, 56\)"):
        jax.eval_shape(lambda: net.apply(variables, images, skip=frozenset({"Reduction-A"})))


def test_frozen_blocks_keep_their_statistics(blocks):
    net, variables, images = blocks
    frozen = frozenset({"Inception-ResNet-A_4", "Reduction-A"})

    _, after = applied(net, variables, images, train=True, frozen=frozen, mutable=["batch_stats"])
    for name, before in variables["batch_stats"].items():
        kept = [
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, after["batch_stats"][name])), strict=True)
        ]
        assert all(kept) if name in frozen else not any(kept), name


def test_removed_blocks_leave_the_others_with_the_same_initial_weights(blocks, key):
    net = surgery.without(blocks[0], "Reduction-A", "Inception-ResNet-B_1", "Inception-ResNet-B_2")
    shorter = surgery.without(net, "Inception-ResNet-A_5")
    before, after = (initial(some, key, blocks[2])["params"] for some in (net, shorter))
    assert set(before) - set(after) == {"Inception-ResNet-A_5"}
    for name, layer in after.items():
        chex.assert_trees_all_equal(layer, before[name])


def test_a_new_head_and_another_cut_leave_the_rest():
    assert surgery.with_head(inception_v4(), 7) == inception_v4(7)
    assert surgery.with_head(inception_resnet("v2_released"), 7) == inception_resnet("v2_released", 7)
    cut = surgery.until(inception_v4(), "Reduction-A")
    assert cut.names[-2:] == ("Inception-A_4", "Reduction-A")
    assert summarise(cut, IMAGE)["Reduction-A"].output == (17, 17, 1024)


def test_another_activation_reaches_into_the_blocks_and_leaves_the_expansions_linear():
    net = surgery.with_activation(inception_resnet("v2_released"), "elu")
    assert {m.body[1].module.act for m in modules(net) if isinstance(m, Residual)} == {None}
    assert (net["Inception-ResNet-C_9"].act, net["Inception-ResNet-C_10"].act) == ("elu", None)


def test_an_unknown_version_is_named_with_the_legal_ones():
    with pytest.raises(CnnjaxError, match="'v3'\nlegal: v1, v2, v2_released"):
        inception_resnet("v3")
