"""Picture files become tensors in [0, 1], or the error says what is wrong with the file."""

import numpy as np
import pytest
import torch
from PIL import Image

from inversefed.errors import ConfigError, InputError
from inversefed.zoo.pictures import crop_and_resize, photo, photo_names, read_picture, with_channels


@pytest.fixture
def save(tmp_path):
    def write(pixels, name="picture.png", mode=None, **options):
        Image.fromarray(np.asarray(pixels), mode).save(tmp_path / name, **options)
        return tmp_path / name

    return write


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_right_size_comes_back_pixel_for_pixel(save):
    pixels = noise(6, 8, 3)
    picture = read_picture(save(pixels), (3, 6, 8))
    assert picture.dtype == torch.float32
    assert torch.equal(picture, torch.from_numpy(pixels).permute(2, 0, 1) / 255)


def test_without_a_shape_the_picture_keeps_its_size(save):
    assert read_picture(save(noise(5, 9))).shape == (3, 5, 9)


def test_the_middle_of_the_right_proportions_is_taken(save):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 255
    assert read_picture(save(pixels), (3, 8, 8)).min() == 1
    assert read_picture(save(pixels), (3, 4, 4)).min() == 1
    assert read_picture(save(pixels), (1, 8, 16)).mean() == pytest.approx(0.5)


def test_resizing_is_anti_aliased():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    assert (crop_and_resize(stripes, 8, 8)[..., 1:-1] - 0.5).abs().max() < 0.02


def test_a_camera_held_upright_gives_an_upright_picture(save):
    pixels = noise(4, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture = read_picture(save(pixels, exif=exif))
    assert torch.equal(picture, torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1) / 255)


def test_transparent_parts_are_white(save):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    picture = read_picture(save(pixels))
    assert (picture[:, :2].max(), picture[:, 2:].min()) == (0, 1)


def test_sixteen_bit_gray_keeps_all_bits(save):
    pixels = np.array([[0, 1], [32768, 65535]], np.uint16)
    picture = read_picture(save(pixels), (1, 2, 2))
    assert torch.equal(picture[0], torch.from_numpy(pixels.astype(np.float32)) / 65535)


def test_floats_are_read_in_their_range_only(save):
    inside = np.array([[0.0, 0.25], [0.5, 1.0]], np.float32)
    assert torch.equal(read_picture(save(inside, "in.tif"), (1, 2, 2))[0], torch.from_numpy(inside))
    with pytest.raises(InputError, match=r"out.tif: .* 0 to 1 \(floats\); these are not"):
        read_picture(save(inside * 300, "out.tif"))


def test_color_becomes_gray_by_luminance_and_gray_becomes_rgb(save):
    path = save(noise(5, 5, 3))
    with Image.open(path) as image:
        gray = torch.from_numpy(np.array(image.convert("L"))) / 255
    assert (read_picture(path, (1, 5, 5))[0] - gray).abs().max() < 0.51 / 255
    assert torch.equal(with_channels(gray[None, None], 3)[0, 2], gray)
    with pytest.raises(InputError, match=r"1 channel \(gray\) or 3"):
        with_channels(gray[None, None], 2)


def test_a_small_picture_is_refused_with_both_sizes_unless_allowed(save):
    path = save(noise(20, 30, 3))
    with pytest.raises(InputError, match=r"is 30x20 pixels, smaller than the 32x32"):
        read_picture(path, (3, 32, 32))
    assert read_picture(path, (3, 32, 32), upscale=True).shape == (3, 32, 32)


def test_broken_files_say_so(tmp_path, save):
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        read_picture(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match=r"text.png cannot be read as a picture"):
        read_picture(tmp_path / "text.png")
    whole = save(noise(64, 64, 3))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut.png cannot be read as a picture"):
        read_picture(tmp_path / "cut.png")


@pytest.mark.parametrize("limit", [150, 50])  # Pillow warns above the limit and refuses above twice the limit
def test_a_picture_beyond_pillows_limit_is_not_opened(save, monkeypatch, limit):
    path = save(noise(14, 14, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match="too large to be opened safely"):
        read_picture(path)


def test_every_bundled_photograph_opens_in_color():
    pictures = [photo(name, (3, 224, 224)) for name in photo_names()]
    assert len(pictures) == 8
    for picture in pictures:
        assert picture.min() >= 0 and picture.max() <= 1
        assert picture.std() > 0.05
        assert not torch.equal(picture[0], picture[2])


def test_an_unknown_photograph_is_refused():
    with pytest.raises(ConfigError, match="did you mean astronaut"):
        photo("astronauts")
