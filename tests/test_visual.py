"""Pictures: what is where, what colour it has, and that no input makes a wrong picture silently."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import visual


def test_minus_one_is_black_zero_grey_and_one_white():
    image = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert visual.to_uint8(image)[0, 0].tolist() == [[0] * 3, [128] * 3, [255] * 3]


def test_values_outside_are_clamped_and_nan_is_grey():
    image = torch.tensor([-7.0, 9.0, float("nan")]).reshape(1, 1, 3)
    assert visual.to_uint8(image)[0, :, 0].tolist() == [0, 255, 128]


def test_channels_stay_in_order():
    red = torch.tensor([1.0, -1.0, -1.0]).reshape(3, 1, 1)
    assert visual.to_uint8(red)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (8, 8), (2, 8, 8, 3)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="expected images of shape"):
        visual.to_uint8(torch.zeros(shape))


def test_grid_places_images_row_by_row():
    shades = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 3, 6, 8)
    grid = visual.image_grid(shades, columns=3, pad=2)
    assert grid.shape == (2 * 8 + 2, 3 * 10 + 2, 3)
    expected = visual.to_uint8(shades)[:, 0, 0, 0].tolist()
    found = [grid[2 + k // 3 * 8, 2 + k % 3 * 10, 0] for k in range(5)]
    assert found == expected
    assert (grid[10:, 22:] == visual.PAPER).all(), "the place without an image is empty"


def test_grid_is_enlarged_by_the_scale():
    assert visual.image_grid(torch.zeros(1, 3, 4, 5), pad=0, scale=3).shape == (12, 15, 3)


def test_an_empty_grid_and_panel_are_refused():
    with pytest.raises(ValueError, match="at least one image"):
        visual.image_grid(torch.zeros(0, 3, 4, 4))
    with pytest.raises(ValueError, match="at least one cell"):
        visual.panel([[]])


def test_heat_grows_lighter_throughout():
    colours = visual.heat_colours(np.linspace(0, 1, 64)[None]).astype(float)
    assert (np.diff(colours.mean(-1)) > 0).all()


def test_overlay_is_hottest_where_attention_is():
    attention = torch.zeros(4, 4)
    attention[0, 3] = 0.01
    picture = np.full((64, 64, 3), 120, np.uint8)
    result = visual.overlay(picture, attention).astype(float).mean(-1)
    row, column = np.unravel_index(result.argmax(), result.shape)
    assert row < 16
    assert column >= 48
    assert result[:16, 48:].mean() > 2 * result[32:, :32].mean()


def test_overlay_compares_places_not_sizes():
    attention, picture = torch.rand(8, 8), np.full((32, 32, 3), 90, np.uint8)
    once, thrice = visual.overlay(picture, attention), visual.overlay(picture, 3 * attention)
    assert np.abs(once.astype(int) - thrice).max() <= 1


def test_overlay_of_no_attention_only_dims():
    picture = np.full((8, 8, 3), 200, np.uint8)
    assert (visual.overlay(picture, torch.zeros(2, 2)) == 110).all()


def test_outline_keeps_the_inside_and_pales_the_outside():
    picture = np.zeros((32, 32, 3), np.uint8)
    mask = torch.zeros(2, 2)
    mask[0, 0] = 1
    result = visual.outline(picture, mask, (1, 2, 3), width=2)
    assert (result[5, 5] == 0).all(), "inside as it was"
    assert (result[5, 15] == (1, 2, 3)).all(), "border coloured"
    assert result[25, 25].min() > 100, "outside paler"


def test_label_map_colours_each_mask_and_mixes_where_they_overlap():
    left, top = torch.tensor([[1, 0], [1, 0]]), torch.tensor([[1, 1], [0, 0]])
    result = visual.label_map([left, top], (4, 4), [(200, 0, 0), (0, 0, 100)])
    assert result[3, 0].tolist() == [200, 0, 0]
    assert result[0, 3].tolist() == [0, 0, 100]
    assert result[0, 0].tolist() == [100, 0, 50]
    assert tuple(result[3, 3]) == visual.GROUND


@pytest.mark.parametrize("draw", [visual.overlay, visual.outline])
def test_a_map_with_a_batch_axis_is_refused(draw):
    with pytest.raises(ValueError, match=r"\(height, width\), got \(1, 4, 4\)"):
        draw(np.zeros((8, 8, 3), np.uint8), torch.zeros(1, 4, 4))


def test_wrapping_loses_no_word_and_respects_the_width():
    text = "a photo of a brown <teddy> on a rolling <board> at times square"
    lines = visual.wrap(text, 120, 14)
    assert " ".join(lines) == text
    assert len(lines) > 2
    font = visual._font(14)
    assert max(font.getlength(line) for line in lines) <= 120


def test_captions_become_images_that_differ_by_their_text():
    images = visual.caption_images(["a cactus", "a ball", "a cactus"], (32, 64))
    assert images.shape == (3, 3, 32, 64)
    assert images.min() >= -1
    assert images.max() <= 1
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])


def test_panel_shows_each_cell_in_its_column():
    def plain(shade: int) -> visual.Cell:
        return visual.Cell(np.full((8, 8, 3), shade, np.uint8), f"shade {shade}")

    sheet = visual.panel([[plain(10), plain(20)], [plain(30)]], ["one", "two"], "title", tile=64)
    columns = {shade: np.argwhere((sheet == shade).all(-1)) for shade in (10, 20, 30)}
    assert [len(places) for places in columns.values()] == [64 * 64] * 3
    assert columns[10][:, 1].max() < columns[20][:, 1].min()
    assert columns[10][:, 0].max() < columns[30][:, 0].min()
    assert columns[10][:, 1].min() == columns[30][:, 1].min()


def test_panel_keeps_the_shape_of_oblong_pictures():
    sheet = visual.panel([[visual.Cell(np.zeros((10, 20, 3), np.uint8))]], tile=64)
    black = np.argwhere((sheet == 0).all(-1))
    assert np.ptp(black, axis=0).tolist() == [31, 63]


def test_word_panel_has_a_column_per_word_and_one_for_masks():
    images, maps = torch.zeros(2, 3, 8, 8), torch.rand(2, 4, 4)
    without = visual.word_panel(images, {"<a>": maps, "red": maps}, tile=64)
    masks = {"<a>": (maps > 0.5).float()}
    with_masks = visual.word_panel(images, {"<a>": maps, "red": maps}, masks, tile=64)
    assert with_masks.shape[1] - without.shape[1] == 64 + visual._GAP
    assert (with_masks == visual.WORD_COLOURS[0]).all(-1).sum() > 64, "the word's colour is used"


def test_filmstrip_is_one_row():
    strip = visual.filmstrip(torch.zeros(5, 3, 8, 8), ["0", "1"], tile=64)
    assert strip.shape[1] == 2 * visual._MARGIN + 5 * 64 + 4 * visual._GAP


def test_render_draws_images_texts_and_attention_and_leaves_the_rest():
    produced = {
        "samples": torch.zeros(3, 3, 16, 16),
        "conditioning": ["a <x>", "a bear", "a photo"],
        "attention": [{"<x>": torch.rand(4, 4)}, {"bear": torch.rand(4, 4)}, {}],
        "loss": torch.tensor(1.0),
        "nothing": [],
    }
    pictures = visual.render(produced, limit=2)
    assert set(pictures) == {"samples", "conditioning", "attention"}
    assert pictures["samples"].shape == visual.image_grid(torch.zeros(2, 3, 192, 192)).shape


def test_png_carries_its_text_and_no_temporary_file_stays(tmp_path):
    path = tmp_path / "new" / "ein bär.png"
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    visual.save_png(path, picture, {"prompt": "ein <bär>", "seed": "7"})
    with Image.open(path) as image:
        assert image.text == {"prompt": "ein <bär>", "seed": "7"}
        assert (np.asarray(image) == picture).all()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
