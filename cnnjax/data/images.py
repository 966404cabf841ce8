"""Pictures as arrays: decode a file safely, bring it to a size, turn uint8 into what a network wants.

Images are uint8 [height, width, channels], RGB or grey. What a set of weights or a recipe wants to see is one record,
`Transform`: its geometry (`conform`) is applied once and on the host, its values (`normalise`) at every step and on the
device.
"""

import dataclasses
import io
import math
import os
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cnnjax.errors import CnnjaxError

MAX_PIXELS = 50_000_000

# What Pillow may open. Not on the list: EPS (runs Ghostscript), and formats that no data set is made of.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")

UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright (EXIF 2.32, tag 0x0112)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a uint8 image becomes the float32 that a network wants.

    In this order: resize, crop the centre, reorder the channels, bring white to `scale`, subtract `mean`, divide by
    `std`. For the ImageNet networks of torchvision

        Transform((224, 224), crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

    and for the VGG networks as their authors published them, in Caffe,

        Transform((224, 224), crop_pct=0.875, order="BGR", scale=255, mean=(103.939, 116.779, 123.68))
    """

    size: tuple[int, int] | None = None
    """Height and width that the network sees; None: as the image is."""
    resize: Literal["shorter", "squash"] = "shorter"
    """"shorter": keep the aspect ratio, the image covers size / crop_pct; "squash": give both sides size / crop_pct."""
    crop_pct: float = 1.0
    """Which part of each side the central crop keeps: 224 of 256 is 0.875."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Pillow's, with antialiasing."""
    mean: tuple[float, ...] = (0.0,)
    """One value, or one per channel in the order of `order`, in the units of `scale`."""
    std: tuple[float, ...] = (1.0,)
    """Like `mean`."""
    order: Literal["RGB", "BGR"] = "RGB"
    """Order of the channels that the network wants; images are stored as RGB."""
    scale: Literal[1, 255] = 1
    """The value of white before mean and std: 1 or 255."""

    def __post_init__(self):
        legal = {
            "size": self.size is None
            or (
                isinstance(self.size, tuple)
                and len(self.size) == 2
                and all(isinstance(n, int) and n > 0 for n in self.size)
            ),
            "resize": self.resize in ("shorter", "squash"),
            "crop_pct": 0 < self.crop_pct <= 1,
            "interpolation": self.interpolation in INTERPOLATIONS,
            "mean": isinstance(self.mean, tuple) and len(self.mean) in (1, 3) and all(map(math.isfinite, self.mean)),
            "std": isinstance(self.std, tuple) and len(self.std) in (1, 3) and all(0 < s < math.inf for s in self.std),
            "order": self.order in ("RGB", "BGR"),
            "scale": self.scale in (1, 255),
        }
        for field, fine in legal.items():
            if not fine:
                raise CnnjaxError(
                    f"Transform: {field}={getattr(self, field)!r} is not legal\n"
                    "legal: size None or two positive integers; resize shorter or squash; 0 < crop_pct <= 1;\n"
                    "interpolation bilinear or bicubic; mean and std tuples of 1 or 3 numbers, std > 0;\n"
                    "order RGB or BGR; scale 1 or 255"
                )


def decode(
    source: bytes | str | os.PathLike, *, channels: int = 3, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> np.ndarray:
    """Decode a JPEG, PNG, GIF (first frame), BMP, WebP, TIFF or PPM: uint8 [height, width, channels], RGB or luma.

    The size is read from the header first, and more than `max_pixels` are refused before a pixel is decoded. EXIF
    rotation is honoured, CMYK becomes RGB, 16 bits are scaled to 8, and what is transparent shows white. `name` stands
    for the image in messages.

    Raises: CnnjaxError, with the name of the image, whatever is wrong with it.
    """
    if channels not in (1, 3):
        raise CnnjaxError(f"images have 1 or 3 channels, not {channels!r}")
    if isinstance(source, bytes):
        name, opened = name or f"of {len(source)} bytes", io.BytesIO(source)
    else:
        name, opened = name or os.fspath(source), source
    try:
        with Image.open(opened, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise CnnjaxError(f"image {name} is {width}×{height} pixels\nat most {max_pixels:,} are decoded")
            picture.load()  # before EXIF is read: Pillow turns a TIFF by itself, and only then
            return _array(_eight_bits(_upright(picture), name).convert("L" if channels == 1 else "RGB"))
    except CnnjaxError:
        raise
    except FileNotFoundError as error:
        raise CnnjaxError(f"there is no image {name}") from error
    except Exception as error:  # Pillow's readers raise almost any exception on bad bytes
        raise CnnjaxError(
            f"cannot decode the image {name}\n{type(error).__name__}: {' '.join(str(error).split())[:200]}\n"
            f"it must be a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block says nothing of the rotation, and the pixels may be good
        orientation = 1
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """A picture that `convert` gets right: it clips 16-bit values instead of scaling them, and drops alpha."""
    if picture.mode == "F":
        raise CnnjaxError(f"image {name} holds floating-point values\nstore 8 or 16 bits a channel")
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise CnnjaxError(f"image {name} holds 32-bit values\nstore 8 or 16 bits a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture


def _array(picture: Image.Image) -> np.ndarray:
    pixels = np.array(picture)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def resize(image: np.ndarray, size: tuple[int, int], *, interpolation: str = "bilinear") -> np.ndarray:
    """Resize uint8 [h, w, 1 or 3] to `size` = (height, width), antialiased (Pillow)."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    if height * width > MAX_PIXELS:
        raise CnnjaxError(
            f"an image of {image.shape[1]}×{image.shape[0]} pixels would be enlarged to {width}×{height}\n"
            f"at most {MAX_PIXELS:,} pixels are made"
        )
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return _array(picture.resize((width, height), INTERPOLATIONS[interpolation]))


def conform(transform: Transform, image: np.ndarray) -> np.ndarray:
    """The geometry of a transform: uint8 [h, w, C] of any size -> uint8 [*transform.size, C].

    Resizes, then crops the centre. The rounding is torchvision's, so that pretrained networks see the pixels that they
    were measured with.
    """
    if transform.size is None:
        return image
    height, width = image.shape[:2]
    # 1e-6: 192 / (192 / 225) is a hair under 225
    tall, wide = (math.floor(side / transform.crop_pct + 1e-6) for side in transform.size)
    if transform.resize == "shorter":
        tall, wide = (tall, width * tall // height) if tall * width >= wide * height else (height * wide // width, wide)
    image = resize(image, (tall, wide), interpolation=transform.interpolation)
    top, left = (round((have - keep) / 2) for have, keep in zip((tall, wide), transform.size, strict=True))
    return image[top : top + transform.size[0], left : left + transform.size[1]]


def to_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [..., 1 or 3] -> uint8 [..., channels]: grey is repeated, RGB becomes luma (ITU-R BT.601, as in Pillow)."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    red, green, blue = (images[..., c].astype(np.uint32) for c in range(3))
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).astype(np.uint8)[..., None]


def normalise(transform: Transform, images: jax.Array) -> jax.Array:
    """The values of a transform: RGB or grey [..., C] -> float32 [..., C] as the network wants it. Jittable.

    `images`: pixels, 0 to 255, uint8 or, where an augmentation has computed them, float32.
    """
    mean, std = _statistics(transform, images)
    values = _reorder(transform, images).astype(jnp.float32)
    return (values / (255 / transform.scale) - mean) / std


def denormalise(transform: Transform, values: jax.Array) -> jax.Array:
    """What `normalise` made, as pictures again: float32 [..., C] -> uint8 RGB or grey [..., C], rounded and clipped."""
    mean, std = _statistics(transform, values)
    pixels = jnp.round((values * std + mean) * (255 / transform.scale))
    return _reorder(transform, jnp.clip(pixels, 0, 255).astype(jnp.uint8))


def _reorder(transform: Transform, images: jax.Array) -> jax.Array:
    return images[..., ::-1] if transform.order == "BGR" else images


def _statistics(transform: Transform, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    channels = images.shape[-1]
    for values in (transform.mean, transform.std):
        if len(values) not in (1, channels):
            raise CnnjaxError(
                f"a mean or std of {len(values)} channels cannot normalise images of {channels}: {values}"
            )
    shape = (1,) * (images.ndim - 1) + (-1,)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(shape) for values in (transform.mean, transform.std))
    return mean, std
