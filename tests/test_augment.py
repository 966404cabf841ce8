"""Augmentations against Pillow, SciPy and NumPy; their draws against the distributions that the papers give."""

import dataclasses
import functools
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from cnnjax.data.augment import Compose, RandomCrop, RandomFlip, RandomResizedCrop, ScaleJitter, fixed, resized_crop
from cnnjax.data.colour import (
    Constant,
    Equalise,
    Lighting,
    Photometric,
    SubtractMean,
    equalise,
    lighting,
    mean_image,
)
from cnnjax.data.images import Transform, normalise
from cnnjax.data.mixing import CutMix, Cutout, Mixup
from cnnjax.data.splits import Split
from cnnjax.data.warps import Blur, Elastic, Rotate, blur, rotate
from cnnjax.errors import CnnjaxError
from cnnjax.models.chain import chain
from cnnjax.models.layers import Dense
from cnnjax.train.feed import Prepare
from cnnjax.train.losses import cross_entropy
from cnnjax.train.state import create
from cnnjax.train.step import train_step

MANY = 2000
MEAN = Constant(np.random.default_rng(1).uniform(0, 255, (12, 10, 3)))
AXES = ((50.0, 52.0, 48.0), (9.0, 0.0, -9.0), (3.0, -6.0, 3.0))

STEPS = {  # of uint8 [B, 12, 10, 3]: the step; the shape and dtype of its images
    "crop":        (RandomCrop((8, 7)),                              (8, 7),   "uint8"),
    "pad-crop":    (RandomCrop((12, 10), pad=4),                     (12, 10), "uint8"),
    "flip":        (RandomFlip(),                                    (12, 10), "uint8"),
    "jitter":      (ScaleJitter((6, 7), smallest=8, largest=16),     (6, 7),   "float32"),
    "resized":     (RandomResizedCrop((6, 7)),                       (6, 7),   "float32"),
    "rotate":      (Rotate(30),                                      (12, 10), "float32"),
    "blur":        (Blur(),                                          (12, 10), "float32"),
    "elastic":     (Elastic(8, 2),                                   (12, 10), "float32"),
    "mean":        (SubtractMean(MEAN),                              (12, 10), "float32"),
    "lighting":    (Lighting(AXES),                                  (12, 10), "float32"),
    "photometric": (Photometric(),                                   (12, 10), "float32"),
    "equalise":    (Equalise(),                                      (12, 10), "uint8"),
    "mixup":       (Mixup(5),                                        (12, 10), "float32"),
    "cutmix":      (CutMix(5),                                       (12, 10), "uint8"),
    "cutout":      (Cutout(4, fill=(125.0, 123.0, 114.0)),           (12, 10), "uint8"),
    "composed":    (Compose((RandomCrop((8, 7)), Photometric())),    (8, 7),   "float32"),
}  # fmt: skip
FIXED = ("mean", "equalise")
MIXING = ("mixup", "cutmix")
ALL = Compose((
    Equalise(), SubtractMean(MEAN), RandomCrop((12, 10), pad=2), RandomFlip(), RandomResizedCrop((9, 8)), Rotate(),
    Blur(), Elastic(8, 2), Lighting(AXES), Photometric(), Cutout(3), Mixup(5), CutMix(5),
))  # fmt: skip


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def examples(n: int = 8) -> dict:
    return {"image": jnp.asarray(pixels(n, 12, 10, 3)), "label": jnp.arange(n, dtype=jnp.int32) % 5}


def copies(image: np.ndarray, n: int = MANY) -> dict:
    """The same image n times, so that only the draws differ."""
    return {"image": jnp.broadcast_to(jnp.asarray(image), (n, *image.shape)), "label": jnp.zeros(n, jnp.int32)}


@functools.cache
def compiled(function, **how):
    """`jit`, once for equal functions, and in less time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0}, **how)


def images(step, key, batch) -> np.ndarray:
    return np.asarray(compiled(step)(key, batch)["image"])


def follows(values, distribution, *arguments) -> None:
    """Kolmogorov and Smirnov: such values are seen at least once in 10,000 draws from the distribution."""
    assert scipy.stats.kstest(values, getattr(scipy.stats, distribution)(*arguments).cdf).pvalue > 1e-4


# --- what all of them promise


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_record_that_compares(name):
    step = STEPS[name][0]
    again = pickle.loads(pickle.dumps(step))
    assert step == again and hash(step) == hash(again)
    assert [other for other, (one, *_) in STEPS.items() if one == step] == [name]
    for field in dataclasses.fields(step):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(step, field.name, None)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_what_it_says_and_its_key_alone_decides(name, key, strict):
    step, size, dtype = STEPS[name]
    batch, run = examples(), compiled(step)
    first, again, other = run(key, batch), run(key, batch), run(jax.random.key(7), batch)
    chex.assert_shape(first["image"], (8, *size, 3))
    assert first["image"].dtype == dtype
    assert np.isfinite(np.asarray(first["image"], np.float32)).all()
    chex.assert_trees_all_equal(first, again)
    assert (name in FIXED) == bool((first["image"] == other["image"]).all())
    if name not in MIXING:
        chex.assert_trees_all_equal(first["label"], batch["label"])


@pytest.mark.parametrize("name", [name for name in STEPS if name not in FIXED])
def test_every_example_has_draws_of_its_own(name, key, strict):
    batch = copies(pixels(12, 10, 3), 8)
    if name in MIXING:  # a partner that differs
        batch["image"] = batch["image"].at[::2].set(255 - batch["image"][0])
    different = np.unique(images(STEPS[name][0], key, batch).reshape(8, -1), axis=0)
    assert len(different) >= (2 if name == "flip" else 5)


@pytest.mark.parametrize("name", STEPS)
def test_float_pixels_are_treated_as_uint8_pixels_are(name, key, strict):
    batch, run = examples(), compiled(STEPS[name][0])
    floats = {**batch, "image": batch["image"].astype(jnp.float32)}
    expected, found = run(key, batch), run(key, floats)
    assert found["image"].dtype == jnp.float32
    chex.assert_trees_all_close(found, {**expected, "image": expected["image"].astype(jnp.float32)}, atol=1e-3)


def test_normalise_takes_both(strict):
    image, transform = jnp.asarray(pixels(2, 4, 4, 3)), Transform(order="BGR", scale=255, mean=(104.0, 117.0, 124.0))
    chex.assert_trees_all_equal(normalise(transform, image), normalise(transform, image.astype(jnp.float32)))


@pytest.mark.long
def test_all_steps_are_one_program_that_gives_the_same_on_eight_devices_and_where_64_bits_are_the_default(key, strict):
    run, batch = compiled(ALL), examples()
    expected = run(key, batch)
    assert expected["image"].dtype == expected["label"].dtype == jnp.float32
    assert "callback" not in run.lower(key, batch).as_text()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    divided = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    chex.assert_trees_all_close(run(key, divided), expected, atol=0.05)
    with jax.enable_x64(True):
        chex.assert_trees_all_close(run(key, batch), expected, atol=0.05)


def test_composed_steps_run_one_after_another_with_keys_of_their_own(key):
    both = images(Compose((RandomFlip(), RandomFlip())), key, copies(pixels(2, 2, 1), 64))
    assert len(np.unique(both.reshape(64, -1), axis=0)) == 2  # the same key twice would undo every flip
    later = Compose((RandomCrop((8, 7)), Equalise()))
    cropped = images(Compose((RandomCrop((8, 7)),)), key, examples())
    np.testing.assert_array_equal(images(later, key, examples()), jax.vmap(equalise)(cropped))


def test_what_draws_nothing_is_for_evaluation_too():
    assert fixed(ALL) == Compose((Equalise(), SubtractMean(MEAN)))
    assert fixed(Compose((Compose((Equalise(), RandomFlip())),))) == fixed(Equalise()) == Compose((Equalise(),))
    assert fixed(RandomFlip()) == fixed(None) == Compose(())
    batch = examples()
    chex.assert_trees_all_equal(fixed(ALL)(None, batch), SubtractMean(MEAN)(None, Equalise()(None, batch)))


LONE = {"image": jnp.zeros((2, 12, 10, 2), jnp.uint8), "label": jnp.zeros(2, jnp.int32)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Compose([RandomFlip()]),
        lambda: Compose((RandomFlip(), 3)),
        lambda: RandomCrop((0, 3)),
        lambda: RandomCrop(32),
        lambda: RandomCrop((8, 8), pad=-1),
        lambda: RandomCrop((13, 10))(jax.random.key(0), LONE),
        lambda: ScaleJitter((300, 224)),
        lambda: ScaleJitter((224, 224), smallest=512, largest=256),
        lambda: RandomResizedCrop((8, 8), area=(0.0, 1.0)),
        lambda: RandomResizedCrop((8, 8), area=(0.5, 1.1)),
        lambda: RandomResizedCrop((8, 8), aspect=(2.0, 1.0)),
        lambda: Rotate(float("nan")),
        lambda: Rotate(-1),
        lambda: Blur((0.0, 1.0)),
        lambda: Elastic(float("inf")),
        lambda: Elastic(sigma=0),
        lambda: SubtractMean(np.zeros((2, 2, 3))),
        lambda: SubtractMean(Constant(np.full((2, 2, 3), np.nan))),
        lambda: SubtractMean(MEAN)(None, LONE),
        lambda: mean_image(Split(np.zeros((0, 2, 2, 3), np.uint8), np.zeros(0, np.int32))),
        lambda: Lighting(()),
        lambda: Lighting(((1.0, 2.0),)),
        lambda: Lighting(AXES, sigma=-0.1),
        lambda: Lighting(AXES)(jax.random.key(0), LONE),
        lambda: Photometric(contrast=(-0.5, 1.0)),
        lambda: Photometric(saturation=(1.5, 0.5)),
        lambda: Photometric()(jax.random.key(0), LONE),
        lambda: Mixup(5, alpha=0.0),
        lambda: CutMix(0),
        lambda: Mixup(5)(jax.random.key(0), {**LONE, "label": jnp.zeros((2, 4))}),
        lambda: Cutout(0),
        lambda: Cutout(4, fill=(float("nan"),)),
        lambda: Cutout(4, fill=AXES[0])(jax.random.key(0), LONE),
    ],
)
def test_what_means_nothing_is_refused(make):
    with pytest.raises(CnnjaxError) as caught:
        make()
    assert 1 <= len(str(caught.value).splitlines()) <= 5


# --- crops and flips


@pytest.mark.parametrize("pad", [0, 2])
def test_a_crop_is_a_window_and_every_window_is_as_likely(pad, key):
    image = np.arange(1, 31, dtype=np.uint8).reshape(6, 5, 1)
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4, 1)).reshape(-1, 16)
    found = images(RandomCrop((4, 4), pad=pad), key, copies(image)).reshape(MANY, 16)
    counts = (found[:, None] == windows[None]).all(axis=2).sum(axis=0)
    assert counts.sum() == MANY
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_half_of_the_images_are_mirrored(key):
    image = pixels(4, 5, 3)
    found = images(RandomFlip(), key, copies(image))
    mirrored = (found == image[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (found == image).all(axis=(1, 2, 3))).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / MANY**0.5


def pillow_box(image: np.ndarray, box, size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = map(float, box)
    inside = (left, top, min(left + width, image.shape[1]), min(top + height, image.shape[0]))
    bands = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(image.shape[-1])]
    return np.stack([band.resize(size[::-1], Image.Resampling.BILINEAR, box=inside) for band in bands], axis=-1)


SHAPES = [(1, 1, 1), (2, 30, 3), (13, 8, 1), (24, 24, 3)]  # each compiles anew
BOXES = [RandomResizedCrop((7, 9)), ScaleJitter((7, 9), smallest=10, largest=40)]


@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**6), step=st.sampled_from(BOXES))
def test_a_resized_crop_is_that_of_pillow_and_lies_within_the_image(shape, seed, step):
    image, (height, width, _) = pixels(*shape, seed=seed), shape
    box = compiled(step.box, static_argnums=(1, 2))(jax.random.key(seed), height, width)
    assert min(box.top, box.left) >= 0 and min(box.height, box.width) > 0
    assert box.top + box.height <= height * 1.00001 and box.left + box.width <= width * 1.00001
    found = compiled(resized_crop, static_argnums=2)(jnp.asarray(image), box, (7, 9))
    np.testing.assert_allclose(found, pillow_box(image, box, (7, 9)), atol=0.1)


@pytest.mark.parametrize("step", BOXES, ids=str)
def test_each_image_shows_the_box_that_its_key_draws(step, key):
    batch = examples(3)
    for image, one, found in zip(batch["image"], jax.random.split(key, 3), images(step, key, batch), strict=True):
        expected = pillow_box(np.asarray(image), step.box(one, 12, 10), (7, 9))
        np.testing.assert_allclose(found, expected, atol=0.1)


def boxes(step, height: int, width: int) -> np.ndarray:
    keys = jax.random.split(jax.random.key(3), MANY)
    return np.asarray(jnp.stack(compiled(jax.vmap(lambda key: step.box(key, height, width)))(keys)), np.float64)


def test_inceptions_areas_are_distributed_evenly_and_its_ratios_within_their_range():
    top, left, height, width = boxes(RandomResizedCrop((1, 1)), 100, 100)
    area = height * width / 100**2
    follows(area, "uniform", 0.08, 0.92)
    assert (width / height > 0.7499).all() and (width / height < 1.3334).all()
    free = area < 0.75  # here every ratio fits
    follows(np.log(width / height)[free], "uniform", np.log(3 / 4), np.log(16 / 9))
    follows(top / (100 - height), "uniform")
    follows(left / (100 - width), "uniform")


@pytest.mark.parametrize("height, width", [(50, 100), (100, 80), (10, 300)])
def test_oblong_images_show_as_much_as_the_ratios_allow(height, width):
    _, _, tall, wide = boxes(RandomResizedCrop((1, 1)), height, width)
    most = max(min(height**2 * r, width**2 / r) for r in np.linspace(3 / 4, 4 / 3, 10_001)) / (height * width)
    area = tall * wide / (height * width)
    assert (wide / tall > 0.7499).all() and (wide / tall < 1.3334).all()
    assert area.max() == pytest.approx(most, rel=0.01)
    if most > 0.08:
        follows(area, "uniform", 0.08, most - 0.08)


def test_vggs_scales_are_distributed_evenly_and_keep_the_proportions():
    top, left, height, width = boxes(ScaleJitter((224, 224)), 300, 400)
    scale = 224 / height
    np.testing.assert_allclose(height, width)
    follows(scale * 300, "uniform", 256, 256)
    follows(top / (300 - height), "uniform")
    follows(left / (400 - width), "uniform")


# --- warps and blur


@settings(max_examples=40, deadline=None)
@given(shape=st.sampled_from(SHAPES), degrees=st.floats(-180, 180))
def test_rotation_is_scipys(shape, degrees):
    image = scipy.ndimage.gaussian_filter(pixels(*shape).astype(np.float32), (1, 1, 0))
    expected = scipy.ndimage.rotate(image, degrees, axes=(1, 0), reshape=False, order=1, mode="nearest")
    np.testing.assert_allclose(compiled(rotate)(jnp.asarray(image), jnp.float32(degrees)), expected, atol=0.05)


@pytest.mark.parametrize("degrees", [-40.0, 5.0, 90.0])
def test_rotation_is_anticlockwise_as_pillows(degrees):
    image = pixels(21, 33)
    expected = Image.fromarray(image.astype(np.float32)).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=-1)
    expected, found = np.asarray(expected), rotate(jnp.asarray(image)[..., None], jnp.float32(degrees))[..., 0]
    shown = scipy.ndimage.minimum_filter(expected, 3) >= 0  # Pillow's own way with the border apart
    assert shown.sum() > 200
    np.testing.assert_allclose(found[shown], expected[shown], atol=0.1)


def test_angles_are_distributed_evenly(key):
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32)[None, :, None], (9, 9, 1))
    found = images(Rotate(20), key, copies(ramp))
    follows(np.rad2deg(np.arcsin((found[:, 3, 4, 0] - found[:, 5, 4, 0]) / 2)), "uniform", -20, 40)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("shape", [(13, 9, 3), (1, 5, 1)])
def test_blur_is_scipys_without_what_lies_outside(sigma, shape):
    image = pixels(*shape).astype(np.float64)

    def filtered(values):
        return scipy.ndimage.gaussian_filter(values, (sigma, sigma, 0), mode="constant", truncate=20)

    np.testing.assert_allclose(
        blur(jnp.asarray(image, jnp.float32), sigma), filtered(image) / filtered(np.ones(shape)), atol=1e-3
    )


def test_the_widths_of_blur_are_distributed_evenly(key):
    point = np.zeros((31, 31, 1), np.uint8)
    point[15, 15] = 255
    peak = images(Blur((1.0, 3.0)), key, copies(point))[:, 15, 15, 0]
    follows(np.sqrt(255 / (2 * np.pi * peak)), "uniform", 1, 2)


def test_elastic_distortion_is_simards_by_scipy(key):
    step, image = Elastic(), pixels(29, 29, 1)
    noise = np.asarray(jax.random.uniform(key, (29, 29, 2), minval=-1, maxval=1), np.float64)

    def filtered(values):
        return scipy.ndimage.gaussian_filter(values, (4, 4, 0), mode="constant", truncate=20)

    field = 34 * filtered(noise) / filtered(np.ones((29, 29, 2)))
    np.testing.assert_allclose(step.field(key, 29, 29), field, atol=1e-3)
    assert 0.5 < field.std() < 4  # pixels: it moves strokes, and tears nothing
    at = np.indices((29, 29)) + np.moveaxis(field, -1, 0)
    expected = scipy.ndimage.map_coordinates(image[..., 0].astype(np.float64), at, order=1, mode="nearest")
    np.testing.assert_allclose(step.one(key, jnp.asarray(image))[..., 0], expected, atol=0.5)
    np.testing.assert_array_equal(Elastic(alpha=0).one(key, jnp.asarray(image)), image)


# --- colours


class Lazy:
    """Images that are not all in memory."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, indices) -> np.ndarray:
        assert len(indices) <= 500
        return self.values[indices]


COLOURED = (pixels(700, 4, 3, 3) * np.array([1, 0.6, 0.3]) + 0.3 * pixels(700, 4, 3, 1, seed=1)).astype(np.uint8)
SPLIT = Split(Lazy(COLOURED), np.zeros(700, np.int32))


def test_the_mean_image_is_numpys(key):
    step = mean_image(SPLIT)
    np.testing.assert_allclose(step.mean.values, COLOURED.mean(axis=0), rtol=1e-6)
    found = images(step, key, {"image": jnp.asarray(COLOURED)})
    np.testing.assert_allclose(found, COLOURED - COLOURED.mean(axis=0, keepdims=True), atol=1e-4)
    np.testing.assert_allclose(mean_image(SPLIT, at_most=2).mean.values, COLOURED[[0, -1]].mean(axis=0))


def test_a_constant_compares_by_its_content_and_prints_in_a_line():
    again = Constant(MEAN.values)
    assert again == MEAN and hash(again) == hash(MEAN)
    assert len({again, MEAN, Constant(MEAN.values.reshape(10, 12, 3)), Constant(MEAN.values + 1)}) == 3
    assert len(repr(MEAN)) < 120
    with pytest.raises(ValueError):
        MEAN.values[0] = 1


def test_lighting_lies_along_the_principal_components_of_the_data(key):
    flat = COLOURED.reshape(-1, 3).astype(np.float64)
    step = lighting(SPLIT)
    axes, covariance = np.array(step.axes), np.cov(flat, rowvar=False, bias=True)
    np.testing.assert_allclose(axes.T @ axes, covariance, rtol=1e-6)  # what is left is that they are at right angles
    np.testing.assert_allclose(axes @ axes.T, np.diag((axes**2).sum(axis=1)), atol=1e-6 * covariance.max())
    assert (np.diff((axes**2).sum(axis=1)) < 0).all()

    shift = images(step, key, copies(COLOURED[0])) - COLOURED[0]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1, :1], shift.shape), atol=1e-4)
    alpha = shift[:, 0, 0].astype(np.float64) @ np.linalg.inv(axes)
    for values in alpha.T:
        follows(values, "norm", 0, 0.1)
    assert alpha.std() == pytest.approx(0.1, rel=4 / (2 * alpha.size) ** 0.5)


ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.5])
@pytest.mark.parametrize("name", ENHANCE)
def test_one_change_of_colour_is_pillows(name, factor, key):
    image = pixels(9, 7, 3)
    still = dict.fromkeys(ENHANCE, (1.0, 1.0))
    step = Photometric(**{**still, name: (factor, factor)})
    expected = np.asarray(ENHANCE[name](Image.fromarray(image)).enhance(factor), np.float64)
    assert np.abs(images(step, key, copies(image, 2))[0] - expected).max() < 1.5  # Pillow drops what follows the point


def test_three_changes_of_colour_are_pillows_in_the_order_that_is_drawn(key):
    step, image = Photometric(), pixels(16, 16, 3)
    for one, found in zip(jax.random.split(key, 20), images(step, key, copies(image, 20)), strict=True):
        order, factors = step.draw(one)
        expected = Image.fromarray(image)
        for which in np.asarray(order):
            expected = list(ENHANCE.values())[which](expected).enhance(float(factors[which]))
        difference = np.abs(found - np.asarray(expected, np.float64))
        assert difference.max() < 5 and difference.mean() < 2


def test_orders_are_equally_likely_and_factors_distributed_evenly(key):
    order, factors = jax.vmap(Photometric((0.2, 0.4), (0.5, 1.5), (1.0, 3.0)).draw)(jax.random.split(key, MANY))
    kinds, counts = np.unique(order, axis=0, return_counts=True)
    assert len(kinds) == 6 and scipy.stats.chisquare(counts).pvalue > 1e-4
    for values, (low, high) in zip(np.asarray(factors).T, [(0.2, 0.4), (0.5, 1.5), (1.0, 3.0)], strict=True):
        follows(values, "uniform", low, high - low)


def test_grey_images_have_no_saturation(key):
    step = Photometric(brightness=(1, 1), contrast=(1, 1), saturation=(0, 2))
    image = pixels(5, 5, 1)
    np.testing.assert_allclose(images(step, key, copies(image, 2))[1], image, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.sampled_from([*SHAPES, (40, 50, 3)]), low=st.integers(0, 255), high=st.integers(0, 255),
    power=st.floats(0.3, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_equalisation_is_pillows_to_the_value(shape, low, high, power, seed):
    image = low + (high - low) * np.random.default_rng(seed).uniform(size=shape) ** power
    image = np.round(image).astype(np.uint8)
    expected = np.asarray(ImageOps.equalize(Image.fromarray(image.squeeze(-1) if shape[-1] == 1 else image)))
    np.testing.assert_array_equal(compiled(equalise)(jnp.asarray(image)), expected.reshape(shape))


# --- mixing


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_is_a_convex_combination_of_an_example_and_its_partner(alpha, key):
    batch = {"image": jnp.asarray(pixels(MANY, 2, 3, 1)), "label": jnp.arange(MANY, dtype=jnp.int32) % 7}
    found = compiled(Mixup(7, alpha=alpha))(key, batch)
    image, label = np.asarray(batch["image"], np.float64), np.eye(7)[batch["label"]]
    keep = np.asarray(found["label"])[np.arange(MANY), batch["label"]].astype(np.float64)
    follows(keep, "beta", alpha, alpha)
    np.testing.assert_allclose(found["label"].sum(axis=1), 1, atol=1e-6)
    mixed = keep[:, None] * label + (1 - keep)[:, None] * np.roll(label, 1, axis=0)
    np.testing.assert_allclose(found["label"], mixed, atol=1e-6)
    keep = keep[:, None, None, None]
    np.testing.assert_allclose(found["image"], keep * image + (1 - keep) * np.roll(image, 1, axis=0), atol=1e-3)


def rectangles(mask: np.ndarray) -> np.ndarray:
    """Asserts that each mask [n, H, W] is one filled rectangle, and gives their areas in pixels."""
    rows, columns = mask.any(axis=2), mask.any(axis=1)
    assert (mask == rows[:, :, None] & columns[:, None]).all()
    for line in (rows, columns):
        assert (np.abs(np.diff(np.pad(line, ((0, 0), (1, 1))).astype(int), axis=1)).sum(axis=1) <= 2).all()
    return mask.sum(axis=(1, 2))


def test_cutmix_replaces_a_rectangle_and_labels_count_pixels(key):
    own, partner = np.arange(MANY) % 3, np.roll(np.arange(MANY) % 3, 1)
    image = np.broadcast_to((80 * own).astype(np.uint8)[:, None, None, None], (MANY, 16, 12, 1))
    found = compiled(CutMix(3))(key, {"image": jnp.asarray(image), "label": jnp.asarray(own, jnp.int32)})
    mask = np.asarray(found["image"])[..., 0] != image[..., 0]
    assert (np.asarray(found["image"])[..., 0] == np.where(mask, 80 * partner[:, None, None], image[..., 0])).all()
    replaced = rectangles(mask) / (16 * 12)
    expected = np.eye(3)[own] * (1 - replaced)[:, None] + np.eye(3)[partner] * replaced[:, None]
    np.testing.assert_allclose(found["label"], expected, atol=1e-6)

    random = np.random.default_rng(0)  # the paper's description once more: centres uniform, then clipped
    side, areas = np.sqrt(1 - random.uniform(size=100_000)), 1.0
    for length in (16, 12):
        centre, half = random.integers(0, length, 100_000), np.round(side * length) / 2
        areas = areas * (np.minimum(centre + half, length) - np.maximum(centre - half, 0)) / length
    assert replaced.mean() == pytest.approx(areas.mean(), abs=4 * areas.std() / MANY**0.5 + 0.01)


def test_cutout_sets_a_square_whose_centre_is_anywhere(key):
    image = np.full((11, 9, 3), 200, np.uint8)
    found = images(Cutout(4, fill=(10.0, 20.6, 300.0)), key, copies(image))
    cut = (found != 200).any(axis=-1)
    np.testing.assert_array_equal(np.unique(found[cut], axis=0), [[10, 21, 255]])
    area = rectangles(cut)
    assert area.max() == 16
    lengths = [[len(set(range(c - 2, c + 2)) & set(range(side))) for c in range(side)] for side in (11, 9)]
    expected = np.outer(*lengths).ravel()
    values, counts = np.unique(area, return_counts=True)
    shares = np.array([(expected == value).mean() for value in values])
    assert shares.sum() == pytest.approx(1)
    assert scipy.stats.chisquare(counts, shares * MANY).pvalue > 1e-4


@settings(max_examples=30, deadline=None)
@given(sizes=st.sampled_from([(1, 1), (5, 3)]), seed=st.integers(0, 10**6))
def test_mixed_labels_sum_to_one_and_can_be_mixed_again(sizes, seed):
    batch, classes = sizes
    labelled = {
        "image": jnp.asarray(pixels(batch, 3, 4, 1)),
        "label": jnp.asarray(np.random.default_rng(seed).integers(0, classes, batch), jnp.int32),
    }
    label = compiled(Compose((Mixup(classes), CutMix(classes))))(jax.random.key(seed), labelled)["label"]
    chex.assert_shape(label, (batch, classes))
    assert (np.asarray(label) >= 0).all()
    np.testing.assert_allclose(label.sum(axis=1), 1, atol=1e-5)


def test_a_step_trains_on_mixed_labels(key):
    """The step with an augmentation is the step on what the augmentation gives."""
    net, tx, loss = chain(fc1=Dense(5, act=None)), optax.sgd(0.1), cross_entropy()
    state = create(net, tx, key, (12, 10, 3), frozen=frozenset(), average=False)
    prepare = Prepare(Transform(), Compose((RandomFlip(), Mixup(5))))
    step = compiled(train_step, static_argnums=(0, 1, 2), static_argnames="augment")
    after, metrics = step(net, tx, loss, key, state, examples(), augment=prepare)
    mixed = compiled(prepare)(jax.random.split(jax.random.fold_in(key, state.step))[0], examples())
    expected, same = step(net, tx, loss, key, state, mixed, augment=None)
    chex.assert_trees_all_close((after, metrics), (expected, same), rtol=1e-5)
    logits = np.asarray(net.apply({"params": state.params}, mixed["image"], train=False).logits)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.asarray(mixed["label"])
    assert float(metrics["loss"]) == pytest.approx(-(label * np.log(p)).sum(axis=1).mean(), rel=1e-4)
    assert float(metrics["error"]) == pytest.approx(100 * (logits.argmax(axis=1) != label.argmax(axis=1)).mean())
