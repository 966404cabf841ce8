"""Augmentation that bends, turns and blurs images, as `cnnjax.data.augment` describes it."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from cnnjax.data.augment import PerImage, require, uniform


def sample(image: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """The image between its pixels, bilinear: [H, W, C] at rows y and columns x, [h, w] each -> float32 [h, w, C].

    Beyond the image its edge goes on.
    """
    height, width, _ = image.shape
    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    down, across = (y - top.astype(y.dtype))[..., None], (x - left.astype(x.dtype))[..., None]

    def row(rows: jax.Array) -> jax.Array:
        near, far = (image[rows, columns].astype(jnp.float32) for columns in (left, right))
        return near + across * (far - near)

    upper, lower = row(top), row(bottom)
    return upper + down * (lower - upper)


def grid(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The row and the column of every pixel: float32 [H, W] each."""
    y, x = jnp.meshgrid(*(jnp.arange(side, dtype=jnp.float32) for side in image.shape[:2]), indexing="ij")
    return y, x


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns an image about its centre, anticlockwise: [H, W, C] -> float32, the same shape. The edge goes on."""
    cosine, sine = jnp.cos(jnp.deg2rad(degrees)), jnp.sin(jnp.deg2rad(degrees))
    middle, centre = ((side - 1) / 2 for side in image.shape[:2])
    y, x = grid(image)
    y, x = y - middle, x - centre
    return sample(image, middle + cosine * y + sine * x, centre + cosine * x - sine * y)


@dataclasses.dataclass(frozen=True)
class Rotate(PerImage):
    """Turns each image by up to `degrees` either way: float32.

    Cireşan et al. 2012 (Multi-column deep neural network for traffic sign classification), section 3: up to 5°.
    """

    degrees: float = 5.0

    def __post_init__(self):
        require(self, 0 <= self.degrees <= 180, "degrees must be in [0, 180]")

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return rotate(image, uniform(key, -self.degrees, self.degrees))


def blur(image: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Weighs [H, W, C] with a Gaussian of `sigma` pixels: float32. Weights that would fall outside are left out."""

    def gaussian(side: int) -> jax.Array:
        at = jnp.arange(side, dtype=jnp.float32)
        weights = jnp.exp(-(((at[:, None] - at[None, :]) / sigma) ** 2) / 2)
        return weights / weights.sum(axis=1, keepdims=True)

    across, down = gaussian(image.shape[1]), gaussian(image.shape[0])
    return jnp.einsum("xX,yY,YXc->yxc", across, down, image.astype(jnp.float32), precision="highest")


@dataclasses.dataclass(frozen=True)
class Blur(PerImage):
    """Blurs each image with a Gaussian of a standard deviation from `sigma`, in pixels: float32.

    The range is that of Chen et al. 2020 (SimCLR), appendix A, where images have 224 pixels; small ones want less.
    """

    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        require(self, 0 < self.sigma[0] <= self.sigma[1] < math.inf, "sigma must be a range of positive numbers")

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        return blur(image, uniform(key, *self.sigma))


@dataclasses.dataclass(frozen=True)
class Elastic(PerImage):
    """Shifts every pixel by a smooth random field: float32.

    Simard et al. 2003, section 2: along both axes, noise from U(-1, 1) is blurred with a Gaussian of `sigma` pixels
    and multiplied by `alpha`. 34 and 4 are the paper's best for MNIST. The edge of the image goes on.
    """

    alpha: float = 34.0
    sigma: float = 4.0

    def __post_init__(self):
        require(self, 0 <= self.alpha < math.inf, "alpha must be 0 or more, and finite")
        require(self, 0 < self.sigma < math.inf, "sigma must be positive and finite")

    def field(self, key: jax.Array, height: int, width: int) -> jax.Array:
        """How many pixels below and to the right each pixel's value is fetched: float32 [height, width, 2]."""
        return self.alpha * blur(uniform(key, -1, 1, (height, width, 2)), self.sigma)

    def one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        shift, (y, x) = self.field(key, *image.shape[:2]), grid(image)
        return sample(image, y + shift[..., 0], x + shift[..., 1])
