"""Draw the picture of the README from a report's folder: target, reconstruction, and their difference.

python docs/make_picture.py runs/demo docs/figures/audit.png
"""

import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

SIDE, GAP, CAPTION, GAIN = 256, 16, 30, 4
TITLES = ("the private picture", "recovered from its gradient", f"difference, times {GAIN}")


def draw(folder: Path) -> Image.Image:
    """Three panels in a row, enlarged by nearest neighbor, with a title above each."""
    target, found = (Image.open(folder / f"{name}_00.png").convert("RGB") for name in ("target", "reconstruction"))
    difference = ImageChops.difference(target, found).point(lambda value: min(255, GAIN * value))
    canvas = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE + CAPTION), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    for index, (title, picture) in enumerate(zip(TITLES, (target, found, difference), strict=True)):
        left = index * (SIDE + GAP)
        pen.text((left + SIDE // 2, CAPTION // 2), title, fill="black", font=font, anchor="mm")
        canvas.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, CAPTION))
    return canvas


if __name__ == "__main__":
    draw(Path(sys.argv[1])).save(sys.argv[2], optimize=True)
