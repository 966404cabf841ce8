"""Augmentation of colours and contrast, as `cnnjax.data.augment` describes it, and what it measures on a data set."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnnjax.data.augment import Batch, Fixed, PerImage, require, uniform
from cnnjax.data.splits import Split
from cnnjax.errors import CnnjaxError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow


def _some(split: Split, at_most: int) -> Iterator[np.ndarray]:
    """At most so many images of a split, evenly spread, some at a time: uint8 [n, H, W, C]."""
    if len(split.image) == 0 or at_most < 1:
        raise CnnjaxError(f"nothing can be measured on {min(len(split.image), at_most)} images")
    chosen = np.unique(np.linspace(0, len(split.image) - 1, min(at_most, len(split.image))).astype(int))
    for few in np.array_split(chosen, -(-len(chosen) // 500)):
        yield split.image[few]


# --- the mean image


class Constant:
    """A float32 array that is compiled in: it hashes, compares and prints by its content."""

    def __init__(self, values: Any):
        self.values = np.array(values, np.float32)
        self.values.flags.writeable = False
        self.sha256 = hashlib.sha256(self.values.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Constant(shape={self.values.shape}, sha256={self.sha256})"


@dataclasses.dataclass(frozen=True)
class SubtractMean(Fixed):
    """Subtracts `mean` [H, W, C], in the units of pixels: float32.

    Krizhevsky et al. 2012, section 2; He et al. 2015, section 4.2 ("per-pixel mean subtracted"). It comes first, that
    the padding of a crop and what `Cutout` cuts out be the mean; the mean of the `Transform` is 0 then. `mean_image`
    measures it. Raises `CnnjaxError` for images of another size.
    """

    mean: Constant

    def __post_init__(self):
        fine = isinstance(self.mean, Constant) and self.mean.values.ndim == 3 and np.isfinite(self.mean.values).all()
        require(self, bool(fine), "mean must be a Constant of shape [H, W, C], and finite")

    def all(self, images: jax.Array) -> jax.Array:
        mean = self.mean.values
        if images.shape[1:] != mean.shape:
            raise CnnjaxError(f"a mean image of shape {mean.shape} cannot be subtracted from {images.shape[1:]}")
        return images.astype(jnp.float32) - jnp.asarray(mean)[None]


def mean_image(split: Split, *, at_most: int = 50_000) -> SubtractMean:
    """The step that subtracts the mean of a split's images, measured on at most so many, evenly spread."""
    total, count = np.zeros(split.image.shape[1:]), 0
    for images in _some(split, at_most):
        total, count = total + images.sum(axis=0, dtype=np.float64), count + len(images)
    return SubtractMean(Constant(total / count))


# --- colours


@dataclasses.dataclass(frozen=True)
class Lighting:
    """Adds the same random colour to all pixels of an image, along the principal components of a data set: float32.

    Krizhevsky et al. 2012, section 4.1: Σ α_i λ_i p_i with α_i from N(0, `sigma`), drawn once for an image. Rows of
    `axes` are λ_i p_i, in the units of pixels; `lighting` measures them.
    """

    axes: tuple[tuple[float, ...], ...]
    sigma: float = 0.1

    def __post_init__(self):
        square = isinstance(self.axes, tuple) and all(
            isinstance(axis, tuple) and len(axis) == len(self.axes) and all(map(math.isfinite, axis))
            for axis in self.axes
        )
        require(self, square and len(self.axes) > 0, "axes must be one tuple of finite numbers for each channel")
        require(self, 0 <= self.sigma < math.inf, "sigma must be 0 or more, and finite")

    def __call__(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        images, axes = batch["image"], jnp.array(self.axes, jnp.float32)
        if images.shape[-1] != len(axes):
            raise CnnjaxError(f"lighting of {len(axes)} channels cannot be added to images of {images.shape[-1]}")
        alpha = self.sigma * jax.random.normal(key, (images.shape[0], len(axes)), jnp.float32)
        colour = jnp.matmul(alpha, axes, precision="highest")
        return {**batch, "image": images.astype(jnp.float32) + colour[:, None, None, :]}


def lighting(split: Split, *, sigma: float = 0.1, at_most: int = 10_000) -> Lighting:
    """The step that adds noise along the principal components of a split's pixels, measured on at most so many images.

    λ_i is the standard deviation along p_i, the root of the covariance matrix's eigenvalue. The paper says eigenvalue,
    but then the noise would depend on the unit that pixels are counted in: 9 levels of 255, or 900.
    """
    channels = split.image.shape[-1]
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), 0
    for images in _some(split, at_most):
        pixels = images.reshape(-1, channels).astype(np.float64)
        total, products, count = total + pixels.sum(axis=0), products + pixels.T @ pixels, count + len(pixels)
    mean = total / count
    variances, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    axes = np.sqrt(np.maximum(variances, 0))[:, None] * vectors.T
    return Lighting(tuple(map(tuple, axes[::-1].tolist())), sigma)


def blend(image: jax.Array, to: jax.Array, factor: jax.Array) -> jax.Array:
    """`to` where the factor is 0, the image where it is 1, and beyond where it is more; kept within 0 to 255."""
    return jnp.clip(to + factor * (image - to), 0, 255)


@dataclasses.dataclass(frozen=True)
class Photometric(PerImage):
    """Changes brightness, contrast and saturation by random factors, in random order, clipping each time: float32.

    Howard 2013 (Some improvements on deep convolutional neural network based image classification), section 2:
    factors from 0.5 to 1.5, by the Python imaging library. Factor 0 gives a black image, one that is grey as the mean
    luma all over, and one without colour. For grey images saturation changes nothing.
    """

    brightness: tuple[float, float] = (0.5, 1.5)
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)

    def __post_init__(self):
        for field in ("brightness", "contrast", "saturation"):
            low, high = getattr(self, field)
            require(self, 0 <= low <= high < math.inf, f"{field} must be a range of factors, 0 or more")

    def draw(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(the order, int [3]; the factors of brightness, contrast and saturation, float32 [3])."""
        to_order, to_factors = jax.random.split(key)
        low, high = jnp.array([self.brightness, self.contrast, self.saturation], jnp.float32).T
        return jax.random.permutation(to_order, 3), uniform(to_factors, low, high, (3,))

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        channels = image.shape[-1]
        if channels not in (1, 3):
            raise CnnjaxError(f"photometric distortion is of images of 1 or 3 channels, not {channels}")
        weights = jnp.array(LUMA if channels == 3 else (1.0,), jnp.float32).reshape(1, 1, channels)
        order, factors = self.draw(key)
        image = image.astype(jnp.float32)
        for place in range(3):
            which = order[place]
            luma = (weights * image).sum(axis=-1, keepdims=True)
            to = jnp.select([which == 0, which == 1], [jnp.zeros_like(luma), jnp.full_like(luma, luma.mean())], luma)
            image = blend(image, to, factors[which])
        return image


@dataclasses.dataclass(frozen=True)
class StandardiseEach(Fixed):
    """Every image of mean 0 and standard deviation 1, whatever the light that it was taken in: float32.

    The last of the steps: the scale of the `Transform` is 255 then, its mean 0 and its std 1. As TensorFlow's
    `per_image_standardization`, but that a flat image is divided by one level of 255.
    """

    def all(self, images: jax.Array) -> jax.Array:
        pixels = images.astype(jnp.float32)
        pixels = pixels - pixels.mean((1, 2, 3), keepdims=True)
        return pixels / jnp.maximum(pixels.std((1, 2, 3), keepdims=True), 1)


# --- histograms


def equalise(image: jax.Array) -> jax.Array:
    """Spreads the values of every channel until each is about as frequent: Pillow's `ImageOps.equalize`.

    [H, W, C] in 0 to 255, uint8 or rounded -> the same dtype.
    """

    def channel(values: jax.Array) -> jax.Array:
        counts = jnp.zeros(256, jnp.int32).at[values].add(1)
        below = jnp.cumsum(counts) - counts
        step = (values.size - counts[values.max()]) // 255
        table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
        return jnp.where(step > 0, table[values], values)

    values = jnp.clip(jnp.round(image.astype(jnp.float32)), 0, 255).astype(jnp.int32)
    flat = jax.vmap(channel, in_axes=1, out_axes=1)(values.reshape(-1, image.shape[-1]))
    return flat.reshape(image.shape).astype(image.dtype)


@dataclasses.dataclass(frozen=True)
class Equalise(Fixed):
    """Equalises the histogram of each channel of each image; keeps the dtype.

    Cireşan et al. 2012 (Multi-column deep neural network for traffic sign classification), section 3; there of the
    lightness in Lab space, here of red, green and blue, as `ImageOps.equalize` of Pillow does.
    """

    def all(self, images: jax.Array) -> jax.Array:
        return jax.vmap(equalise)(images)
