"""The lectures' experiments on training, depth and what surrounds a network: what they compute beside the error."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax import figures, page
from cnnjax.analysis.classic import deskew, gaussian_svm, nearest_neighbours, virtual_svm
from cnnjax.analysis.gradients import gradient_norms, initial_gradient_norms
from cnnjax.data.colour import StandardiseEach
from cnnjax.data.sequences import letters, sounds
from cnnjax.data.splits import Dataset, Split
from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import chain, rows
from cnnjax.models.deep import KINDS, Stack, deep
from cnnjax.models.layers import Dense
from cnnjax.train.recipe import CROSS_ENTROPY
from experiments import densenet_growth, highway_depth, lenet_traffic_signs, locality, pooling, residual_lesions
from experiments.residual_lesions import droppable

FACTS = json.loads((Path(__file__).parent / "facts.json").read_text())


def pictures(n: int, *shape: int, classes: int = 10) -> Dataset:
    """Made-up images and labels."""
    draw = np.random.default_rng(0)
    split = Split(draw.integers(0, 256, (n, *shape), np.uint8), np.arange(n, dtype=np.int32) % classes)
    return Dataset("made up", split, split, tuple(map(str, range(classes))))


# --- networks and their gradients


def test_a_stack_is_its_layers_one_after_another(key):
    stacked = chain(stack=Stack(rows(fc=Dense(4, act="tanh")), 3))
    apart = chain({f"fc{i}": Dense(4, act="tanh") for i in range(3)})
    x = jax.random.normal(key, (2, 4))
    params = stacked.init(key, x)["params"]
    assert params["stack"]["fc"]["kernel"].shape == (3, 4, 4)
    assert float(jnp.abs(params["stack"]["fc"]["kernel"][0] - params["stack"]["fc"]["kernel"][1]).max()) > 0.1
    unstacked = {f"fc{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["stack"]["fc"]) for i in range(3)}
    want = apart.apply({"params": unstacked}, x).logits
    np.testing.assert_allclose(stacked.apply({"params": params}, x).logits, want, rtol=1e-5)
    norms = gradient_norms(stacked, CROSS_ENTROPY, {"params": params}, x, jnp.array([0, 1]))["stack"]
    each = gradient_norms(apart, CROSS_ENTROPY, {"params": unstacked}, x, jnp.array([0, 1]))
    np.testing.assert_allclose(norms, [each[f"fc{i}"] for i in range(3)], rtol=1e-4)


def test_gradient_norms_are_those_of_the_loss(key):
    net = chain(output=Dense(2, act=None, bias=False))
    x, label = jnp.array([[1.0, 2.0]]), jnp.array([0])
    values = {"params": {"output": {"kernel": jnp.zeros((2, 2))}}}
    found = gradient_norms(net, CROSS_ENTROPY, values, x, label)
    assert float(found["output"]) == pytest.approx(math.log10(math.sqrt(0.5 * 5)), abs=1e-5)  # x outer (p - y)
    zero = gradient_norms(net, CROSS_ENTROPY, values, 0 * x, label)
    assert float(zero["output"]) == pytest.approx(-37, abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_deep_network_passes_a_gradient_to_each_layer(kind, key):
    net = deep(kind, 4, classes=3, width=5)
    norms = initial_gradient_norms(net, CROSS_ENTROPY, key, jax.random.normal(key, (2, 16, 16, 1)), jnp.array([0, 1]))
    hidden = [np.atleast_1d(norms[name]) for name in net.names if name.startswith(("stack", "dense"))]
    assert np.concatenate(hidden).shape == (4,) and np.isfinite(np.concatenate(hidden)).all()
    assert len(net.aux) == (2 if kind == "aux" else 0)


def test_deep_networks_that_there_are_not_are_refused():
    with pytest.raises(CnnjaxError, match="unknown kind of deep network 'wide'"):
        deep("wide", 10)
    with pytest.raises(CnnjaxError, match="3 layers or more, not 2"):
        deep("plain", 2)


def test_the_gradient_of_sigmoids_vanishes_and_shortcuts_keep_it(key):
    images, labels = jax.random.normal(key, (8, 16, 16, 1)), jnp.arange(8) % 3
    fell = {}
    for kind in ("plain", "residual"):
        net = deep(kind, 30, classes=3, width=8, act="sigmoid")
        norms = initial_gradient_norms(net, CROSS_ENTROPY, key, images, labels)["stack"]
        fell[kind] = float(norms[0] - norms[-1])
    assert fell["plain"] < -10 and abs(fell["residual"]) < 2


# --- sizes at the papers' scale


def test_densenets_of_the_paper_scale_have_the_printed_parameters():
    config = dataclasses.replace(densenet_growth.SCALES["paper"], data="made up")
    found = densenet_growth.variants(config, pictures(20, 32, 32, 3))
    for name, row in found.items():
        key = {"resnet56": "cifar_resnet56_optA"}.get(name, f"densenet_{name}")
        if key in FACTS:
            assert row.columns["parameters"] == FACTS[key]["params"]
    assert (found["L100_k12"].columns["layers"], found["L100_k12"].columns["k"]) == (100, 12)
    assert list(found) == list(densenet_growth.PUBLISHED)


def test_the_rival_of_a_small_densenet_has_about_its_parameters():
    found = densenet_growth.variants(densenet_growth.LAB, pictures(20, 16, 16, 1))
    ours, rival = (found[name].columns["parameters"] for name in ("bc_L100_k12", "resnet56"))
    assert abs(rival / ours - 1) < 0.2


def test_highway_networks_of_the_paper_scale_have_the_printed_parameters():
    found = highway_depth.variants(highway_depth.SCALES["paper"], pictures(20, 28, 28, 1))
    for depth in highway_depth.DEPTHS:
        for kind, key in {"plain": f"plain_fc_{depth}_w71", "highway": f"highway_fc_{depth}_w50"}.items():
            assert found[f"{kind}-{depth}"].columns["parameters"] == FACTS[key]["params"]
    biases = {name: row.net["highway_2"].gate[0].module.bias_init for name, row in found.items() if "highway" in name}
    assert biases["highway-10"] == -1 and biases["highway-50"] == -3 and biases["highway-50-bias-6"] == -6


def test_the_first_layer_of_the_slide_has_its_weights():
    found = locality.variants(locality.SMOKE, pictures(20, 28, 28, 1))
    weights = {kind: found[f"digits-{kind}"].columns["at 200×200"] for kind in locality.KINDS}
    assert weights == {"shared": 2_500, "local": 196 * 196 * 2_500, "perceptron": 1_600_000_000}


# --- lesions, shifts, permutations


def test_only_blocks_that_keep_the_shape_can_be_dropped():
    nets = residual_lesions.networks(residual_lesions.SMOKE, 10)
    image = jnp.zeros((1, 8, 8, 1))

    def names(net):
        return droppable(net, jax.eval_shape(net.init, jax.random.key(0), image), (8, 8, 1))

    assert names(nets["resnet"]) == names(nets["plain"]) == ["conv2_1", "conv2_2", "conv3_2", "conv4_2"]
    assert names(nets["highway"]) == [f"highway_{i}" for i in range(2, 10)]
    vgg = "conv1_2 conv2_2 conv3_2 conv3_3 conv4_2 conv4_3 conv5_1 conv5_2 conv5_3"
    assert names(nets["vgg"]) == vgg.split()


def test_images_are_shifted_to_four_sides():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 2, 2] = 9
    places = [tuple(np.argwhere(moved[0, :, :, 0] == 9)[0]) for moved in pooling.shifts(image, 2)]
    assert sorted(places) == [(0, 2), (2, 0), (2, 4), (4, 2)]


def test_permuted_pixels_are_the_same_pixels_in_one_other_order():
    images = jnp.arange(2 * 16).reshape(2, 4, 4, 1)
    moved = locality.Permute()(None, {"image": images})["image"]
    assert moved.shape == images.shape and not (moved == images).all()
    np.testing.assert_array_equal(np.sort(moved, axis=None), np.arange(32))
    np.testing.assert_array_equal(moved[1] - moved[0], 16)


def test_every_image_is_standardised_by_itself():
    images = jnp.stack([jnp.full((4, 4, 1), 7.0), jnp.arange(16.0).reshape(4, 4, 1)])
    found = StandardiseEach()(None, {"image": images})["image"]
    np.testing.assert_allclose(found[0], 0)
    assert float(found[1].mean()) == pytest.approx(0, abs=1e-6) and float(found[1].std()) == pytest.approx(1, abs=1e-5)


# --- classic methods


def test_a_slanted_stroke_is_set_upright_in_the_middle():
    image = np.zeros((1, 20, 20, 1), np.uint8)
    for row in range(4, 14):
        image[0, row, 3 + row // 2] = 255
    stroke = deskew(image)[0]
    rows_, columns = np.argwhere(stroke > 60).T
    assert np.ptp(columns) <= 1 and np.ptp(rows_) >= 8
    assert abs(columns.mean() - 9.5) < 1 and abs(rows_.mean() - 9.5) < 1


@pytest.mark.parametrize("method", [nearest_neighbours, gaussian_svm, virtual_svm])
def test_classic_methods_tell_a_bar_from_a_dot(method):
    draw = np.random.default_rng(0)
    images, labels = np.zeros((40, 12, 12, 1), np.uint8), np.arange(40) % 2
    for image, label in zip(images, labels, strict=True):
        image[2 : 10 if label else 4, 5:7] = draw.integers(150, 255)
    assert (method(images[:20], labels[:20], images[20:]) == labels[20:]).all()


# --- letters and sounds


def test_words_become_images_of_their_letters(tmp_path):
    for language, stem in {"one": "ab", "two": "yz"}.items():
        words = ["".join((stem[i >> k & 1]) for k in range(11)) for i in range(1100)]
        (tmp_path / language).write_text("\n".join([*words, "Name", "no", "d'or"]))
    data = letters((tmp_path / "one", tmp_path / "two"))
    assert data.classes == ("one", "two") and data.train.image.shape[1:] == (26, 12, 1)
    assert len(data.test.label) == 1000 and len(data.train.label) == 1200
    for image, label in zip(data.test.image, data.test.label, strict=True):
        used = set(np.flatnonzero(image[:, :, 0].any(1)))
        assert used <= ({0, 1} if label == 0 else {24, 25})
        assert image[:, :11].sum() == 11 * 255 and not image[:, 11].any()


def test_word_lists_that_are_none_are_refused(tmp_path):
    (tmp_path / "few").write_text("only four words here")
    with pytest.raises(CnnjaxError, match="has 4 words of 4 to 12 small letters"):
        letters((tmp_path / "few", tmp_path / "few"))
    with pytest.raises(CnnjaxError, match="cannot read the words"):
        letters((tmp_path / "nosuch", tmp_path / "few"))
    with pytest.raises(CnnjaxError, match="two or more"):
        letters((tmp_path / "few",))


@pytest.mark.parametrize(("make", "shape"), [(lambda: letters(()), (26, 12, 1)), (sounds, (16, 32, 1))])
def test_made_up_data_have_four_classes_alike(make, shape):
    data = make()
    assert len(data.train.label) == 4000 and len(data.test.label) == 1000 and len(data.classes) == 4
    assert data.train.image.shape == (4000, *shape) and data.train.image.dtype == np.uint8
    assert np.bincount(np.concatenate([data.train.label, data.test.label])).tolist() == [1250] * 4


# --- traffic signs


def test_pictures_to_recognise_are_no_part_of_what_a_run_is():
    config = dataclasses.replace(lenet_traffic_signs.LAB, image=(Path("a.png"),))
    assert config.record() == lenet_traffic_signs.LAB.record() and "image" not in config.record()
    assert len(lenet_traffic_signs.SIGNS) == 43 == len(set(lenet_traffic_signs.SIGNS))


# --- what reports are made of


def test_a_linked_cell_is_a_link_in_both_forms(tmp_path):
    table = page.Table(["where"], [[page.Link("a & b", "a/report.html")]])
    page.write(tmp_path, page.Page("Title", [("Heading", [table])], "end"))
    assert '<td><a href="a/report.html">a &amp; b</a></td>' in (tmp_path / "report.html").read_text()
    assert "| [a & b](a/report.html) |" in (tmp_path / "report.md").read_text()


def test_lines_and_greys_say_what_they_show():
    drawn = figures.lines({"one": [(1, 2.0, 0.5), (3, 1.0, None)], "none": []}, x="layers", y="error", ticks=(1, 3))
    assert "<!-- layers -->" in drawn and "<!-- error -->" in drawn and "<!-- none -->" not in drawn
    drawn = figures.lines({"": [(1, 1e-12, None), (2, 1.0, None)]}, x="epoch", y="norm", log="y")
    assert "10^{-12}" in drawn and "10^{0}" in drawn  # of many decades there are ticks as well
    drawn = figures.heat({"left": [[0, 1]], "right": [[1, 0]]}, x="place", y="row", value="gate", limits=(0, 1))
    assert all(f"<!-- {said} -->" in drawn for said in ("left", "right", "place", "row", "gate"))


def test_points_are_means_over_seeds_of_what_was_run():
    found = {
        "metric": "error",
        "rows": [{"variant": "a", "seeds": {"0": {"error": 1, "m": 5}, "1": {"error": 3, "m": 5}}}],
    }
    assert figures.points(found, {10: "a", 20: "not run"}) == [(10, 2, pytest.approx(math.sqrt(2)))]
    assert figures.points(found, {10: "a"}, "m") == [(10, 5, 0)]
    assert figures.point(1, [4]) == (1, 4, None)
