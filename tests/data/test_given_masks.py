"""True masks beside pictures: read, flipped with the picture, and taken by the loss as they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.concepts.masks import AttentionMask
from ldm.data.given_masks import true_mask
from ldm.data.metadata import Item
from ldm.data.personalized import PersonalizedBase
from ldm.data.steps import StepKey
from ldm.evaluation.tables.pictures import draw_set
from tests.concepts.toy import make_step


class TestGivenMasks:
    @pytest.fixture
    def folder(self, tmp_path):
        return draw_set(tmp_path, "bear-skateboard", 0, 2, 1, 32).folder

    def test_a_word_alone_is_learned_inside_its_mask(self, folder, tmp_path):
        drawn = draw_set(tmp_path, "bear-skateboard", 0, 2, 1, 32)
        data = PersonalizedBase(folder, 32, flip_p=1.0, given_masks=True, own_sentences=False,
                                sentence="a [brown] <bear:toy>")  # fmt: skip
        example = data[StepKey(0, 0)]
        truth = drawn.truth(drawn.shown[example["image_id"]])["<bear>"]
        assert example["flip"]
        np.testing.assert_array_equal(example["mask"], truth[:, ::-1].astype(np.float32))

    def test_a_missing_mask_is_named(self, folder):
        with pytest.raises(FileNotFoundError, match=r"1-zebra\.png"):
            true_mask(Item(folder / "1.png"), ["<zebra>"])

    def test_a_word_that_stays_without_a_mask_is_told(self, folder, caplog):
        (folder / "masks/1-bear.png").unlink()
        data = PersonalizedBase(folder, 32, given_masks=True, own_sentences=False, strategy="all",
                                sentence="a [brown] <bear:toy> on a <skateboard:toy>")  # fmt: skip
        assert all(mask.any() for mask in data.every_mask())
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == 1, "of words such as 'on' no mask is expected"
        assert "1-bear.png" in told[0]
        assert "<bear> is outside" in told[0]

    def test_a_mask_of_what_is_cut_off_is_refused(self, tmp_path):
        pixels = np.zeros((4, 8), np.uint8)
        pixels[:, 6:] = 255
        item = replace(self.save(tmp_path, pixels), crop=(0, 0, 4, 4))
        with pytest.raises(ValueError, match="nothing white in what is shown"):
            true_mask(item, ["<bear>"])

    def save(self, folder, mask, mode="L"):
        """A picture of 8x4 pixels with a mask of `<bear>`."""
        (folder / "masks").mkdir()
        Image.new("RGB", (8, 4), "green").save(folder / "1.png")
        Image.fromarray(mask, mode).save(folder / "masks/1-bear.png")
        return Item(folder / "1.png")

    def test_transparent_parts_are_outside(self, tmp_path):
        pixels = np.full((4, 8, 4), 255, np.uint8)
        pixels[:, 2:, 3] = 0
        mask = true_mask(self.save(tmp_path, pixels, "RGBA"), ["<bear>"])
        assert mask[:, :2].all()
        assert not mask[:, 2:].any()

    def test_a_larger_mask_is_cut_where_its_picture_is(self, tmp_path):
        pixels = np.zeros((8, 16), np.uint8)
        pixels[:4, :8] = 255
        item = replace(self.save(tmp_path, pixels), crop=(0, 0, 4, 2))
        assert true_mask(item, ["<bear>"]).mean() == 1

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.eye(4, 8, dtype=np.uint8), "no value above 1: save it as 0 and 255"),
            (np.zeros((4, 8), np.uint8), "none of its masks is white"),
            (np.full((8, 4), 255, np.uint8), "4x8 pixels, its picture 8x4"),
        ],
        ids=("labels", "black", "turned"),
    )
    def test_a_bad_mask_is_refused(self, tmp_path, mask, message):
        with pytest.raises(ValueError, match=message):
            true_mask(self.save(tmp_path, mask), ["<bear>"])

    def test_the_term_takes_it_as_it_is(self):
        mask = torch.zeros(2, 16, 16)
        mask[1, :8] = 1
        found = AttentionMask(kind="given")(make_step(2, extras={"mask": mask}))
        assert found.shape == (2, 1, 8, 8)
        assert found[0].sum() == 0
        assert found[1, 0, :4].all()
        assert not AttentionMask(kind="given").reads_attention
        with pytest.raises(ValueError, match="given_masks=true"):
            AttentionMask(kind="given")(make_step(2))
