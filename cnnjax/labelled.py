"""A picture with what a network says of it underneath."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Pillow and NumPy load when there is something to draw
    import numpy as np
    from PIL import Image


def printable(text: str) -> str:
    """The text with a mark for each letter that cannot be shown."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def fitted(pixels: np.ndarray, *, least: int = 224, largest: int = 640) -> Image.Image:
    """uint8 [height, width, 3] as a picture whose longer side has between `least` and `largest` pixels."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = min(max(height, width, least), largest) / max(height, width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def draw(picture: Image.Image, named: Sequence[tuple[str, float]]) -> Image.Image:
    """The picture, and under it on white each class with its probability as a bar and in per cent."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # matplotlib brings a font with it that has most of the world's letters
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 16)
    edge, line, bar, number = 12, 26, 120, 72
    across = max(picture.width, 420)
    room = across - 3 * edge - bar - number
    sheet = Image.new("RGB", (across, picture.height + 2 * edge + line * len(named)), "white")
    sheet.paste(picture, ((across - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for i, (name, probability) in enumerate(named):
        top = picture.height + edge + line * i
        middle, left = top + line // 2, edge + room + edge
        pen.text((edge, middle), _fitting(printable(name), room, font), "black", font, anchor="lm")
        pen.rectangle((left, top + 6, left + bar, top + line - 6), "#e8e8e8")
        pen.rectangle((left, top + 6, left + round(bar * probability), top + line - 6), "#0072b2")
        pen.text((across - edge, middle), f"{100 * probability:.1f} %", "black", font, anchor="rm")
    return sheet


def _fitting(text: str, room: float, font: Any) -> str:
    """As much of the beginning as there is room for."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


def as_svg(file: Path) -> str:
    """A drawing as what a page can hold."""
    from PIL import Image

    with Image.open(file) as picture, io.BytesIO() as small:
        picture.save(small, "JPEG", quality=85)
        data, (width, height) = base64.b64encode(small.getvalue()).decode(), picture.size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" style="max-width:{width}px">'
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/></svg>\n'
    )
