"""Decoding, resizing and the Transform record."""

import io
import struct
import tracemalloc
import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cnnjax.data.images import Transform, conform, decode, denormalise, normalise, resize, to_channels
from cnnjax.errors import CnnjaxError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def half_transparent_palette() -> Image.Image:
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    return picture


# fmt: off
PICTURES = {  # what is stored -> (bytes, the colour it shows)
    "RGB PNG":               (encoded(Image.new("RGB", (4, 4), RED)), RED),
    "RGB BMP":               (encoded(Image.new("RGB", (4, 4), RED), "BMP"), RED),
    "RGB WebP":              (encoded(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True), RED),
    "RGB PPM":               (encoded(Image.new("RGB", (4, 4), RED), "PPM"), RED),
    "RGB JPEG":              (encoded(Image.new("RGB", (8, 8), RED), "JPEG", quality=100), RED),
    "CMYK JPEG":             (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "CMYK TIFF":             (encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"), RED),
    "grey PNG":              (encoded(Image.new("L", (4, 4), 77)), (77, 77, 77)),
    "black and white PNG":   (encoded(Image.new("1", (4, 4), 1)), WHITE),
    "palette PNG":           (encoded(half_transparent_palette()), RED),
    "palette GIF":           (encoded(half_transparent_palette(), "GIF"), RED),
    "transparent palette":   (encoded(half_transparent_palette(), transparency=1), WHITE),
    "opaque RGBA":           (encoded(Image.new("RGBA", (4, 4), (*RED, 255))), RED),
    "transparent RGBA":      (encoded(Image.new("RGBA", (4, 4), (*RED, 0))), WHITE),
    "half transparent RGBA": (encoded(Image.new("RGBA", (4, 4), (*RED, 127))), (255, 128, 128)),
    "transparent grey":      (encoded(Image.new("LA", (4, 4), (0, 0))), WHITE),
    "16-bit PNG":            (encoded(Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))), (128, 128, 128)),
    "16-bit TIFF":           (encoded(Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), "TIFF"), (128, 128, 128)),
    "16-bit PGM":            (b"P5 2 2 65535 " + struct.pack(">4H", *[128 * 257] * 4), (128, 128, 128)),
    "dark 16-bit PNG":       (encoded(Image.fromarray(np.full((4, 4), 200, np.uint16))), (1, 1, 1)),
}
# fmt: on


@pytest.mark.parametrize("what", PICTURES)
def test_a_picture_shows_its_colour_however_it_is_stored(what):
    data, colour = PICTURES[what]
    pixels = decode(data)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3
    assert np.abs(pixels.astype(int) - np.array(colour)).max() <= ("JPEG" in what), pixels[0, 0]
    grey = decode(data, channels=1)
    assert grey.shape == (*pixels.shape[:2], 1)
    assert np.abs(grey.astype(int) - np.dot(colour, (0.299, 0.587, 0.114)).round()).max() <= 1


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, (0, 0, 255))]
    assert decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_honoured(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(3, 5)), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(data)
    np.testing.assert_array_equal(pixels, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert pixels.shape == ((5, 3, 3) if orientation >= 5 else (3, 5, 3))


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0rubbish rubbish", b"Exif\0\0MM\0*\0\0\0\x08\0\xff"],
)
@pytest.mark.filterwarnings("ignore")  # Pillow says that the block is corrupt, which is the point
def test_a_damaged_exif_block_does_not_cost_the_picture(exif):
    assert decode(encoded(Image.new("RGB", (8, 8), RED), "JPEG", exif=exif)).shape == (8, 8, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than anyone wants, and whose few bytes would unpack to them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 << 20)) for _ in range(width * height // 8 >> 20)) + packer.flush()
    header = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("width, height", [(8000, 7000), (30000, 30000)])
def test_a_bomb_is_refused_from_its_header(width, height):
    data = bomb(width, height)
    tracemalloc.start()
    with pytest.raises(CnnjaxError, match="pixels"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_the_limit_of_pixels_can_be_set():
    data = encoded(Image.new("L", (10, 10)))
    assert decode(data, max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(CnnjaxError, match="10×10 pixels"):
        decode(data, max_pixels=99)


PNG, JPEG = (encoded(Image.fromarray(noise(40, 40)), kind) for kind in ("PNG", "JPEG"))

BROKEN = {
    "empty": b"",
    "text": b"this is no image\n" * 9,
    "truncated PNG": PNG[: len(PNG) // 2],
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "header alone": PNG[:33],
    "EPS, which would run Ghostscript": encoded(Image.new("RGB", (4, 4)), "EPS"),
    "PCX, which Pillow could read": encoded(Image.new("RGB", (4, 4)), "PCX"),
    "PDF": encoded(Image.new("RGB", (4, 4)), "PDF"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "floating point": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
    "32 bits": encoded(Image.new("I", (4, 4), 1 << 20), "TIFF"),
    "an .npy file": b"\x93NUMPY\x01\0v\0{'descr': '|O'",
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "bytes"])
def test_what_is_no_whole_image_is_refused_by_name(what, as_file, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(BROKEN[what])
    with pytest.raises(CnnjaxError, match=r"broken\.jpg") as caught:
        decode(path) if as_file else decode(BROKEN[what], name="broken.jpg")
    assert 1 <= len(str(caught.value).splitlines()) <= 5


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path):
    with pytest.raises(CnnjaxError, match=r"there is no image .*gone\.png"):
        decode(tmp_path / "gone.png")
    with pytest.raises(CnnjaxError, match=str(tmp_path)):
        decode(tmp_path)


@settings(max_examples=300, deadline=None)
@given(
    whole=st.sampled_from([PNG, JPEG, *(data for data, _ in PICTURES.values())]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0.5, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_our_error_and_nothing_else(whole, changes, cut):
    data = bytearray(whole)
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        pixels = decode(bytes(data[: max(1, int(cut * len(data)))]), max_pixels=10_000)
    except CnnjaxError as error:
        assert len(str(error).splitlines()) <= 5
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3


def test_images_have_one_or_three_channels():
    with pytest.raises(CnnjaxError, match="1 or 3 channels, not 4"):
        decode(PNG, channels=4)


def test_channels_change_as_in_pillow():
    pixels = noise(30, 50)
    np.testing.assert_array_equal(to_channels(pixels, 1)[..., 0], np.asarray(Image.fromarray(pixels).convert("L")))
    np.testing.assert_array_equal(to_channels(pixels[..., :1], 3), np.stack([pixels[..., 0]] * 3, -1))
    assert to_channels(pixels, 3) is pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_averages_what_it_drops(channels):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    small = resize(np.repeat(checks.astype(np.uint8)[..., None], channels, -1), (8, 16))
    assert small.shape == (8, 16, channels) and np.abs(small.astype(int) - 127.5).max() < 10


def test_resizing_to_the_same_size_changes_nothing():
    pixels = noise(5, 7)
    assert resize(pixels, (5, 7), interpolation="bicubic") is pixels


def test_a_thread_of_pixels_is_not_blown_up():
    with pytest.raises(CnnjaxError, match="100000×1 pixels would be enlarged to 22400000×224"):
        conform(Transform((224, 224)), np.zeros((1, 100_000, 3), np.uint8))


def test_conform_resizes_the_shorter_side_and_crops_the_centre_as_torchvision_does():
    pixels = noise(375, 500)
    whole = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BICUBIC)  # int(256 · 500 / 375) = 341
    crop = np.asarray(whole)[16 : 16 + 224, 58 : 58 + 224]  # int(round(117 / 2)) = 58
    found = conform(Transform((224, 224), crop_pct=0.875, interpolation="bicubic"), pixels)
    np.testing.assert_array_equal(found, crop)


def test_a_crop_without_resize_takes_the_pixels_as_they_are():
    for size, whole in ((299, 342), (192, 225), (224, 256)):
        pixels, edge = noise(whole, whole), round((whole - size) / 2)
        found = conform(Transform((size, size), crop_pct=size / whole), pixels)
        np.testing.assert_array_equal(found, pixels[edge : edge + size, edge : edge + size])


def test_squash_gives_up_the_aspect_ratio():
    pixels = noise(20, 40)
    np.testing.assert_array_equal(conform(Transform((10, 10), resize="squash"), pixels), resize(pixels, (10, 10)))


@settings(deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop_pct=st.floats(0.3, 1),
    how=st.sampled_from(["shorter", "squash"]),
)
def test_conform_always_gives_the_size_that_is_asked_for(height, width, size, crop_pct, how):
    assert conform(Transform(size, resize=how, crop_pct=crop_pct), noise(height, width)).shape == (*size, 3)


@pytest.mark.parametrize(
    "field",
    [
        {"size": (0, 3)},
        {"size": (3,)},
        {"size": [8, 8]},
        {"resize": "stretch"},
        {"crop_pct": 0.0},
        {"crop_pct": 1.1},
        {"interpolation": "nearest"},
        {"mean": (1.0, 2.0)},
        {"mean": (float("nan"),)},
        {"std": (0.0,)},
        {"std": [1.0]},
        {"order": "GBR"},
        {"scale": 2},
    ],
    ids=str,
)
def test_a_transform_that_means_nothing_is_refused(field):
    with pytest.raises(CnnjaxError, match=next(iter(field))) as caught:
        Transform(**field)
    assert len(str(caught.value).splitlines()) <= 5


TORCHVISION = Transform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAFFE = Transform(order="BGR", scale=255, mean=(103.939, 116.779, 123.68))
INCEPTION = Transform(mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize(
    "transform, expected",
    [
        (Transform(), [10 / 255, 20 / 255, 30 / 255]),
        (TORCHVISION, [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]),
        (CAFFE, [30 - 103.939, 20 - 116.779, 10 - 123.68]),
        (INCEPTION, [20 / 255 - 1, 40 / 255 - 1, 60 / 255 - 1]),
    ],
    ids=["plain", "torchvision", "caffe", "inception"],
)
def test_normalise_gives_the_values_that_the_weights_were_trained_on(transform, expected, strict):
    pixels = jnp.broadcast_to(jnp.array([10, 20, 30], jnp.uint8), (2, 4, 5, 3))
    values = jax.jit(normalise, static_argnums=0)(transform, pixels)
    chex.assert_shape(values, (2, 4, 5, 3))
    chex.assert_type(values, jnp.float32)
    np.testing.assert_allclose(values[1, 2, 3], expected, rtol=1e-5)


@pytest.mark.parametrize("transform", [Transform(), TORCHVISION, CAFFE, INCEPTION])
def test_denormalise_undoes_normalise_for_every_value(transform, strict):
    pixels = jnp.stack([jnp.arange(256, dtype=jnp.uint8)] * 3, -1).reshape(1, 16, 16, 3) + jnp.array(
        [0, 1, 2], jnp.uint8
    ).reshape(1, 1, 1, 3)
    np.testing.assert_array_equal(denormalise(transform, normalise(transform, pixels)), pixels)


def test_denormalise_clips_what_no_picture_can_show(strict):
    assert denormalise(Transform(), jnp.array([[[-3.0], [0.5], [7.0]]])).ravel().tolist() == [0, 128, 255]


def test_three_means_do_not_silently_make_three_channels_of_a_grey_image():
    with pytest.raises(CnnjaxError, match="3 channels cannot normalise images of 1"):
        normalise(TORCHVISION, jnp.zeros((1, 2, 2, 1), jnp.uint8))
