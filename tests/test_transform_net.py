"""Johnson's transformation networks and the autoencoder: counts, geometry, the cropped block in NumPy, and surgery."""

import by_hand
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from narrow import applied, features

from cnnjax.analysis.summary import summarise
from cnnjax.errors import CnnjaxError
from cnnjax.models import surgery
from cnnjax.models.autoencoder import autoencoder
from cnnjax.models.chain import Chain, Residual
from cnnjax.models.layers import BatchNorm, Conv, ConvTranspose, Pad
from cnnjax.models.transform_net import Crop, Pixels, super_resolution, transform_net

SIZE = 48  # small, and above the 40 pixels that are mirrored


def shrunk(net: Chain) -> Chain:
    """One residual block, an eighth of the maps; the image keeps its three colours."""
    net = surgery.without(net, *[name for name in net.names if name.startswith("res") and name != "res1"])
    thin = surgery.map_modules(net, lambda m: m.clone(features=m.features // 8) if hasattr(m, "features") else m)
    return surgery.with_head(thin, 3)


MEMBERS = {
    "style": lambda: shrunk(transform_net()),
    "style without biases": lambda: shrunk(transform_net(bias=False)),
    "×2": lambda: shrunk(super_resolution(2)),
    "autoencoder": lambda: shrunk(autoencoder(3)),
}


@pytest.fixture(params=MEMBERS)
def member(request):
    net = MEMBERS[request.param]()
    images = by_hand.noise(1, SIZE, SIZE, 3)
    return net, by_hand.scrambled(net, images), images


# --- counts and shapes ------------------------------------------------------------------------------------------------


def test_parameters_of_the_style_network_by_hand():
    maps = [(9, 3, 32), (3, 32, 64), (3, 64, 128), *[(3, 128, 128)] * 10, (3, 128, 64), (3, 64, 32), (9, 32, 3)]
    weights = sum(k * k * i * o for k, i, o in maps)
    norms, biases = 2 * sum(o for _, _, o in maps[:-1]), sum(o for _, _, o in maps)
    assert (weights, norms, biases) == (1_674_432, 3_200, 1_603)
    assert summarise(transform_net(), (256, 256, 3)).params == weights + norms + biases
    assert summarise(transform_net(bias=False), (256, 256, 3)).params == weights + norms


def test_the_style_network_s_maps():
    summary = summarise(transform_net(), (256, 256, 3))
    assert [row.output[0] for row in summary.rows] == [336, 336, 168, 84, 80, 76, 72, 68, 64, 128, 256, 256, 256]
    assert summary["pixels"].output == (256, 256, 3)
    assert summarise(transform_net(), (64, 100, 3))["pixels"].output == (64, 100, 3)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_super_resolution_multiplies_the_size(factor):
    summary = summarise(super_resolution(factor), (36, 20, 3))
    assert summary["res4"].output == (36, 20, 64)
    assert summary["pixels"].output == (36 * factor, 20 * factor, 3)


def test_parameters_of_the_super_resolution_networks_by_hand():
    block = 2 * (9 * 64 * 64 + 64 + 128)
    for factor, ups in {4: 2, 8: 3}.items():
        by_sum = (81 * 3 * 64 + 64 + 128) + 4 * block + ups * (9 * 64 * 64 + 64 + 128) + (81 * 64 * 3 + 3)
        assert summarise(super_resolution(factor), (36, 36, 3)).params == by_sum


def test_padding_in_the_residual_blocks_posing_as_the_paper_s_is_found_out():
    """Most ports do without the 40 pixels: same parameters and output size, other multiply-adds."""
    paper = transform_net()
    same = surgery.without(paper, "reflect_pad40")
    padded = {f"res{i}": same_size(paper[f"res{i}"]) for i in range(1, 6)}
    wrong = surgery.replace(same, **padded)
    right, port = summarise(paper, (256, 256, 3)), summarise(wrong, (256, 256, 3))
    assert right.params == port.params and right["pixels"].output == port["pixels"].output
    assert right.macs == 10_938_507_264 != port.macs


def same_size(block) -> Residual:
    return block.clone(body=surgery.map_modules(Chain(block.body), lambda m: m.clone(pad=1)).layers, shortcut=())


def test_the_autoencoder_by_hand():
    # 3×3 weights and biases: 1→32, 32→64, 64→8, 8→64, 64→32, 32→1
    by_sum = 9 * (32 + 32 * 64 + 64 * 8 + 8 * 64 + 64 * 32 + 32) + (32 + 64 + 8 + 64 + 32 + 1)
    summary = summarise(autoencoder(), (28, 28, 1))
    shapes = jax.eval_shape(autoencoder().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    second = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    assert summary.params == second == by_sum == 46_857
    assert [row.output for row in summary.rows] == [
        (14, 14, 32), (7, 7, 64), (7, 7, 8), (14, 14, 64), (28, 28, 32), (28, 28, 1)
    ]  # fmt: skip
    assert summarise(autoencoder(3, widths=(8, 16, 32), code=4), (32, 64, 3))["out"].output == (32, 64, 3)


# --- a second opinion in NumPy ----------------------------------------------------------------------------------------


def test_a_cropped_residual_block_in_numpy():
    block = shrunk(transform_net())["res1"]
    x = by_hand.noise(2, 9, 7, 16)
    variables = by_hand.scrambled(block, x)
    p, s, y = variables["params"], variables["batch_stats"], x
    for name in ("conv1", "conv2"):
        y = by_hand.conv(y, p[name]["kernel"]) + p[name]["bias"]
        y = by_hand.norm(y, p[name]["norm"], s[name]["norm"])
        y = by_hand.relu(y) if name == "conv1" else y
    ours = by_hand.evaluate(block, variables, x)
    chex.assert_shape(ours, (2, 5, 3, 16))
    np.testing.assert_allclose(ours, y + x[:, 2:-2, 2:-2], rtol=1e-4, atol=1e-5)
    for wrong in (by_hand.relu(y + x[:, 2:-2, 2:-2]), y + x[:, :-4, :-4], y):
        assert not np.allclose(ours, wrong, atol=1e-2)


def test_the_border_is_mirrored_without_its_own_pixel():
    x = np.arange(4.0, dtype=np.float32).reshape(1, 1, 4, 1) + 10 * np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(Pad(2).apply({}, x, False)[0, 2, :, 0], [2, 1, 0, 1, 2, 3, 2, 1])
    np.testing.assert_array_equal(Pad(2).apply({}, x, False)[0, :, 2, 0], [20, 10, 0, 10, 20, 30, 20, 10])
    np.testing.assert_array_equal(Crop(2).apply({}, Pad(2).apply({}, x, False), False), x)
    np.testing.assert_array_equal(Pad(1, "constant").apply({}, x, False)[0, 1, :, 0], [0, 0, 1, 2, 3, 0])


def test_an_image_too_small_to_mirror_is_refused():
    with pytest.raises(CnnjaxError, match="an image of 40×64 has no 40 pixels to mirror\ngive one of at least 41×41"):
        jax.eval_shape(transform_net().init, jax.random.key(0), jnp.zeros((1, 40, 64, 3)))


@pytest.mark.parametrize("factor", [1, 3, 6, -2])
def test_a_factor_that_is_no_power_of_two_is_refused(factor):
    with pytest.raises(CnnjaxError, match=f"factor of super-resolution {factor}\nlegal: 2, 4, 8"):
        super_resolution(factor)


# --- what is rectified, what learns, and surgery ----------------------------------------------------------------------


def test_everything_but_sums_and_output_is_normalised_and_rectified():
    net = shrunk(transform_net())
    images = by_hand.noise(1, SIZE, SIZE, 3)
    variables = by_hand.scrambled(net, images)
    names = ("conv1", "conv2", "conv3", "res1/conv1", "res1/conv2", "res1", "up1", "up2", "out", "pixels")
    found = features(net, variables, images, names)
    assert {name for name, y in found.items() if y.min() < 0} == {"res1/conv2", "res1", "out"}
    weighted = [module for module in by_hand.modules(net) if isinstance(module, (Conv, ConvTranspose))]
    assert [module.norm is None for module in weighted] == 7 * [False] + [True]
    assert not any(isinstance(module, BatchNorm) for module in by_hand.modules(net))


def test_pixels_are_in_range_and_grey_at_zero():
    y = Pixels().apply({}, jnp.asarray([-50.0, 0.0, 50.0]), False)
    np.testing.assert_allclose(y, [0, 127.5, 255])


def test_a_gradient_reaches_every_leaf(member, strict):
    net, _, images = member
    assert by_hand.leaves_without_gradient(net, images) == []


def test_another_activation_leaves_the_range_of_the_output():
    net = surgery.with_activation(shrunk(transform_net()), "elu")
    images = by_hand.noise(1, SIZE, SIZE, 3)
    y = applied(net, by_hand.scrambled(net, images), images).logits
    assert 0 <= y.min() < y.max() <= 255


def test_a_block_is_skipped_where_it_keeps_the_size():
    images = by_hand.noise(1, SIZE, SIZE, 3)
    net = shrunk(super_resolution(2))
    variables = by_hand.scrambled(net, images)
    lesioned = applied(net, variables, images, skip=frozenset({"res1"})).logits
    chex.assert_trees_all_close(lesioned, applied(surgery.without(net, "res1"), variables, images).logits, rtol=1e-5)
    net = transform_net()
    images = jnp.zeros((1, 256, 256, 3))
    variables = jax.eval_shape(net.init, jax.random.key(0), images)
    with pytest.raises(CnnjaxError, match=r"'res2' cannot be skipped: it turns \(80, 80, 128\) into \(76, 76, 128\)"):
        jax.eval_shape(lambda v: net.apply(v, images, skip=frozenset({"res2"})), variables)


def test_the_encoder_is_the_network_until_its_code():
    net = autoencoder()
    images = by_hand.noise(2, 28, 28, 1)
    variables = by_hand.scrambled(net, images)
    code = features(net, variables, images, ("code",))["code"]
    chex.assert_shape(code, (2, 7, 7, 8))
    chex.assert_trees_all_close(applied(surgery.until(net, "code"), variables, images).logits, code, rtol=1e-6)
    assert summarise(surgery.with_head(surgery.until(net, "code"), 10), (28, 28, 1))["code"].output == (7, 7, 10)
