"""Evaluation protocols as data: which parts of a test image a network sees, before what it says of them is averaged.

The sizes are the papers', for crops of 224; `for_crop` gives the same protocol for another one. GoogLeNet's scales 256,
288, 320, 352 are 8/7, 9/7, 10/7, 11/7 of it, so that a crop of 299 makes them 342, 385, 427, 470.
"""

import dataclasses
from typing import NamedTuple

from cnnjax.errors import CnnjaxError

Size = tuple[int, int]  # height, width

# Places of a crop: the share of the room that it leaves above it, and to its left.
CENTRE = ((0.5, 0.5),)
CORNERS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """At each of `scales`, in each of `squares`, each of `crops`; if `mirror`, each left to right as well."""

    source: str
    """Paper and section."""
    crop: int = 224
    """Side of the crops, and what the scales are measured against."""
    scales: tuple[int | None, ...] = (256,)
    """The shorter side to which the image is brought; None leaves it as it is."""
    squares: tuple[float, ...] | None = None
    """Where along the longer side the squares lie that are cropped, from 0 to 1; None crops the image itself."""
    crops: tuple[tuple[float, float], ...] | None = CENTRE
    """Where the crops lie; None shows the network the whole, whatever its size: dense evaluation."""
    shrunk: bool = False
    """Besides the crops, the whole square made as small as they are."""
    mirror: bool = False

    def __post_init__(self):
        if self.crop < 1 or not self.scales or any(scale is not None and scale < 1 for scale in self.scales):
            raise CnnjaxError(f"crop {self.crop} and scales {self.scales} must be at least 1")
        if (self.crops is None and self.shrunk) or (self.crops == () and not self.shrunk):
            raise CnnjaxError("a protocol shows crops, or a whole image (crops=None) that is not shrunk")

    def for_crop(self, side: int) -> "Protocol":
        """The protocol with all sizes in the proportion that `side` has to its crop."""
        scales = tuple(None if scale is None else round(scale * side / self.crop) for scale in self.scales)
        return dataclasses.replace(self, crop=side, scales=scales)


class View(NamedTuple):
    """One look at an image: bring it to the size `scaled`, cut out, bring that to the size `seen`, mirror."""

    scaled: Size
    top: int
    left: int
    box: Size
    seen: Size
    mirror: bool


def scaled(size: Size, shorter: int | None) -> Size:
    """`size` = (height, width) with another shorter side and the same aspect ratio, rounded down; None: as it is."""
    short = min(size)
    return size if shorter is None else (size[0] * shorter // short, size[1] * shorter // short)


def views(protocol: Protocol, size: Size) -> tuple[View, ...]:
    """What a protocol shows of an image of `size` = (height, width), scale by scale.

    An image that is square has one square, whatever their number. Raises `CnnjaxError` where no crop fits.
    """
    found = []
    for whole in (scaled(size, shorter) for shorter in protocol.scales):
        if protocol.crops is not None and protocol.crop > min(whole):
            raise CnnjaxError(
                f"an image of {whole[0]}×{whole[1]} pixels has no crops of {protocol.crop}×{protocol.crop}"
            )
        for top, left, height, width in _regions(protocol, whole):
            for box, seen, (below, right) in _boxes(protocol, (height, width)):
                for mirror in (False, True)[: 1 + protocol.mirror]:
                    found.append(View(whole, top + below, left + right, box, seen, mirror))
    return tuple(found)


def _regions(protocol: Protocol, whole: Size) -> list[tuple[int, int, int, int]]:
    """What is cropped, as (top, left, height, width)."""
    tall, wide = whole
    if protocol.squares is None:
        return [(0, 0, tall, wide)]
    side, room = min(whole), max(whole) - min(whole)
    starts = [int(room * place) for place in (protocol.squares if room else protocol.squares[:1])]
    return [(start, 0, side, side) if tall > wide else (0, start, side, side) for start in starts]


def _boxes(protocol: Protocol, region: Size) -> list[tuple[Size, Size, Size]]:
    """What is seen of a region, as (size, size that it is brought to, place of its corner)."""
    if protocol.crops is None:
        return [(region, region, (0, 0))]
    side, (tall, wide) = (protocol.crop, protocol.crop), region
    boxes = [
        (side, side, (int((tall - side[0]) * below), int((wide - side[1]) * right))) for below, right in protocol.crops
    ]
    return [*boxes, (region, side, (0, 0))] if protocol.shrunk else boxes


AS_IT_IS = Protocol(
    source="He et al. 2015, section 4.2: the single view of the original image", scales=(None,), crops=None
)

FIVE, DENSE = CORNERS + CENTRE, None
PROTOCOLS = {
    "whole": AS_IT_IS,
    "centre": Protocol(source="Krizhevsky et al. 2012, section 2: the central part of the image at 256"),
    "10crop": Protocol(source="Krizhevsky et al. 2012, section 4.1", squares=(0.5,), crops=FIVE, mirror=True),
    "144": Protocol(
        source="Szegedy et al. 2014, section 7", scales=(256, 288, 320, 352), squares=(0.0, 0.5, 1.0), crops=FIVE,
        shrunk=True, mirror=True,
    ),
    "dense": Protocol(source="Simonyan & Zisserman 2014, section 3.2", crops=DENSE, mirror=True),
    "multiscale": Protocol(
        source="Simonyan & Zisserman 2014, section 4.2", scales=(256, 384, 512), crops=DENSE, mirror=True
    ),
    # The scales are recalled.
    "multiscale_resnet": Protocol(
        source="He et al. 2015, section 3.4", scales=(224, 256, 384, 480, 640), crops=DENSE, mirror=True
    ),
}  # fmt: skip
