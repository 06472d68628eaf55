"""The picture of the README: what it is made of comes from audits, and is drawn as it is said."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from docs.make_gallery import (
    BETWEEN,
    CASES,
    GAP,
    HEAD,
    HEIGHT,
    SENTENCE,
    TILE,
    WIDTH,
    Panel,
    draw,
    measure,
    sentence,
    tiles,
)

ROOT = Path(__file__).parents[1]
LENET, *_, BERT, PERCEPTRON = CASES


@pytest.mark.slow
def test_a_gallery_is_made_of_audits() -> None:
    panels = [measure(case, seconds=5.0) for case in (PERCEPTRON, BERT)]
    assert [panel.lines[0] for panel in panels] == ["100 % of the cells are right", "100 % of the letters are right"]
    assert all(panel.private.tobytes() == panel.found.tobytes() for panel in panels)


@pytest.mark.slow
def test_a_picture_has_its_decibels_beside_the_limit_and_one_color() -> None:
    panel = measure(LENET, seconds=5.0)
    reached, bound, color = panel.lines
    assert reached.startswith("recovered ") and bound.startswith("limit ") and color == "best constant color 19.6 dB"
    assert len({pixel for _, pixel in panel.private.getcolors(TILE * TILE)}) > 100


def test_panels_stand_three_in_a_row_with_both_squares() -> None:
    photos = torch.arange(4 * 3 * 32 * 32).reshape(4, 3, 32, 32) / (4 * 3 * 32 * 32)
    panels = [Panel("one", tiles(photos[:1]), tiles(photos), ("a", "b"))] * 4
    canvas = draw(panels)
    assert 3 * WIDTH < canvas.width <= 900 and 2 * HEIGHT < canvas.height < 3 * HEIGHT

    for left, top in ((GAP, GAP), (3 * GAP + 2 * WIDTH, GAP), (GAP, 2 * GAP + HEIGHT)):
        for square, at in ((panels[0].private, left), (panels[0].found, left + TILE + BETWEEN)):
            shown = canvas.crop((at, top + HEAD, at + TILE, top + HEAD + TILE))
            assert shown.tobytes() == square.tobytes()


def test_four_pictures_are_one_square_in_their_order() -> None:
    square = tiles(torch.tensor([0.0, 0.2, 0.4, 1.0])[:, None, None, None].expand(4, 3, 32, 32))
    assert [square.getpixel((x, y))[0] for y in (5, TILE - 5) for x in (5, TILE - 5)] == [0, 51, 102, 255]


def test_what_is_wrong_is_red() -> None:
    letters = [(str(place), letter) for place, letter in enumerate(SENTENCE, 1)]
    reds = [
        any(red > 100 > blue for _, (red, _, blue) in sentence(found, letters).getcolors(TILE * TILE))
        for found in (letters, letters[:-1])
    ]
    assert reds == [False, True]


def test_the_gallery_of_the_readme_fits_a_page() -> None:
    picture = ROOT / "docs" / "figures" / "gallery.png"
    assert picture.stat().st_size < 300_000
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG" and drawn.width <= 900
