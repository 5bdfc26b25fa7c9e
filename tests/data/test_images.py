"""Finding and reading pictures as people have them."""

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import find_images, image_size, load_image, to_array


def pattern(height=6, width=8, channels=3):
    """A picture no two of whose pixels are alike."""
    values = np.arange(height * width * channels) * 5 % 251
    return values.reshape(height, width, channels).astype(np.uint8)


def names(folder, **options):
    return [path.relative_to(folder).as_posix() for path in find_images(folder, **options)]


@pytest.fixture
def folder(tmp_path):
    """A folder such as a phone, a Mac and a Windows machine leave behind."""
    picture = Image.fromarray(pattern())
    for name in ("10.png", "2.PNG", "1.jpg", "zoë 猫.jpeg", "b.webp"):
        picture.save(tmp_path / name)
    picture.save(tmp_path / "no_suffix", format="JPEG")
    for junk in (".DS_Store", "._1.jpg", "Thumbs.db", "1.txt", "metadata.jsonl", "notes.json", "a"):
        (tmp_path / junk).write_bytes(b"\x00\x01 not a picture")
    (tmp_path / "inner").mkdir()
    (tmp_path / "folder.jpg").mkdir()
    picture.save(tmp_path / "inner" / "3.bmp")
    return tmp_path


def test_images_are_found_by_content_in_natural_order(folder):
    top = ["1.jpg", "2.PNG", "10.png", "b.webp", "no_suffix", "zoë 猫.jpeg"]
    assert names(folder) == top
    assert sorted(names(folder, recursive=True)) == sorted([*top, "inner/3.bmp"])


def test_masks_of_other_images_are_left_out(tmp_path):
    for name in ("a", "a_mask", "a-masklabel", "img", "mask0", "mask1", "unmasked", "b_mask"):
        Image.fromarray(pattern()).save(tmp_path / f"{name}.png")
    assert names(tmp_path) == ["a.png", "b_mask.png", "img.png", "unmasked.png"]


def test_a_mask_without_its_image_is_an_image(tmp_path):
    Image.fromarray(pattern()).save(tmp_path / "mask.png")
    assert names(tmp_path) == ["mask.png"]


@pytest.mark.parametrize("content", [b"", b"hello, I was renamed", b"\xff\xd8\xff"])
@pytest.mark.parametrize("name", ["holiday.jpg", "ünï.PNG", "phone.heic"])
def test_a_file_that_only_looks_like_an_image_is_named(tmp_path, name, content):
    Image.fromarray(pattern()).save(tmp_path / "good.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        find_images(tmp_path)


def test_wrong_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_images(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        find_images(tmp_path / "file")
    assert find_images(tmp_path) == []


# What a camera that was turned has stored, for each value of the EXIF orientation.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    upright = pattern()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(TURNS[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(load_image(tmp_path / "turned.png")), upright)
    assert image_size(tmp_path / "turned.png") == (8, 6)


def grey_16_bit():
    return Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16))


def palette():
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 1, 0])
    return image


MODES = {
    "16 bit png": (grey_16_bit(), "png", {}, [0, 100, 200, 255]),
    "16 bit tiff": (grey_16_bit(), "tiff", {}, [0, 100, 200, 255]),
    "real tiff": (Image.fromarray(np.eye(2, dtype=np.float32)), "tiff", {}, [255, 0, 0, 255]),
    "black and white": (Image.fromarray(np.eye(2) > 0), "png", {}, [255, 0, 0, 255]),
    "grey, half clear": (Image.new("LA", (2, 2), (0, 102)), "png", {}, [153] * 4),
    "clear": (Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "png", {}, [255] * 4),
    "solid": (Image.new("RGBA", (2, 2), (10, 20, 30, 255)), "png", {}, [(10, 20, 30)] * 4),
    "cmyk": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tiff", {}, [(255, 0, 0)] * 4),
    "cmyk jpeg": (Image.new("CMYK", (2, 2), (255, 255, 0, 0)), "jpg", {}, [(0, 0, 255)] * 4),
    "palette": (palette(), "png", {}, [(255, 0, 0), (0, 0, 255), (0, 0, 255), (255, 0, 0)]),
    "palette, one clear": (
        palette(),
        "gif",
        {"transparency": 1},
        [(255, 0, 0), 255, 255, (255, 0, 0)],
    ),
}


@pytest.mark.parametrize("case", MODES)
def test_every_mode_becomes_rgb(tmp_path, case):
    image, suffix, options, expected = MODES[case]
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **options)
    found = load_image(path)
    wanted = [value if isinstance(value, tuple) else (value,) * 3 for value in expected]
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).reshape(-1, 3) - np.array(wanted, int)).max() <= 1


def test_pixel_values_that_cannot_be_understood_are_refused(tmp_path):
    values = np.array([[-3.0, 900.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    with pytest.raises(ValueError, match=r"scan\.tiff.*-3 to 900"):
        load_image(tmp_path / "scan.tiff")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    path = tmp_path / f"moving.{suffix}"
    red.save(path, save_all=True, append_images=[blue], lossless=True)
    assert load_image(path).getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"halb ü.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"halb ü\.{suffix}.*[Rr]eplace"):
        load_image(path)


def test_a_damaged_image_is_named(tmp_path):
    path = tmp_path / "bad.png"
    Image.fromarray(pattern(64, 64)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png"):
        load_image(path)


def test_the_array_is_the_central_square_in_minus_one_to_one():
    picture = pattern(height=4, width=10)
    array = to_array(Image.fromarray(picture), 4)
    assert array.dtype == np.float32
    assert np.array_equal(array, (picture[:, 3:7] / 127.5 - 1).astype(np.float32))
    extremes = to_array(Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8)), None, False)
    assert extremes.min() == -1
    assert extremes.max() == 1


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "bilinear", "bicubic", "lanczos"])
def test_resizing(interpolation):
    image = Image.fromarray(pattern(9, 12))
    assert to_array(image, 5, interpolation=interpolation).shape == (5, 5, 3)
    squeezed = to_array(image, 5, center_crop=False, interpolation=interpolation)
    assert squeezed.shape == (5, 5, 3)
    flat = to_array(Image.new("RGB", (9, 12), (51, 51, 51)), 5, interpolation=interpolation)
    assert flat == pytest.approx(51 / 127.5 - 1)


@pytest.mark.parametrize("options", [{"interpolation": "cubic"}, {"size": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        to_array(Image.new("RGB", (4, 4)), **{"size": 4, **options})


def test_the_papers_images_load(shared):
    root = shared / "data" / "multi-concept-dataset"
    folders = sorted({path.parent for path in root.rglob("*.jpg")})
    sets = {folder.parent: folder for folder in folders}
    assert len(folders) > len(sets) > 20
    for folder in folders:
        assert find_images(folder)
    for folder in sets.values():
        array = to_array(load_image(find_images(folder)[0]), 32)
        assert array.shape == (32, 32, 3)
        assert np.isfinite(array).all()
        assert array.std() > 0.01


def test_any_digits_are_sorted(tmp_path):
    for name in ("10\u00b25.png", "2.png", "10.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    assert find_images(tmp_path)[0].stem == "2"
    assert len(find_images(tmp_path)) == 3


def test_twelve_bits_in_sixteen_are_told(tmp_path, caplog):
    dark, full = np.array([[0, 4095]], np.uint16), np.array([[0, 65535]], np.uint16)
    for name, values in (("dark.tiff", dark), ("full.tiff", full)):
        Image.fromarray(values).save(tmp_path / name)
        load_image(tmp_path / name)
    (record,) = caplog.records
    assert "dark.tiff" in record.getMessage()
    assert "4095" in record.getMessage()
