"""ImageNet, super-resolution and LSUN from local folders."""

import numpy as np
import pytest
from PIL import Image

from ldm.data import imagenet, lsun
from ldm.data.images import to_array
from ldm.data.steps import StepKey

NAMES = [f"ImageNet{kind}{part}" for kind in ("", "SR") for part in ("Train", "Validation")]
SCENES = [f"LSUN{kind}{p}" for kind in ("Churches", "Bedrooms") for p in ("Train", "Validation")]


@pytest.fixture
def folder(tmp_path):
    values = np.random.default_rng(3)
    for name in ("dog/1", "cat/1", "cat/2"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(values.integers(0, 255, (16, 20, 3), dtype=np.uint8)).save(path)
    return tmp_path


def find(name):
    return getattr(lsun if name in SCENES else imagenet, name)


@pytest.mark.parametrize("name", NAMES + SCENES)
def test_the_folder_comes_from_the_option_or_the_environment(folder, monkeypatch, name):
    cls = find(name)
    given = cls(size=8, data_root=folder)
    assert len(given) == 3
    assert np.array_equal(given[0]["image"], to_array(Image.open(given[0]["file_path_"]), 8))
    monkeypatch.delenv(cls.variable, raising=False)
    with pytest.raises(ValueError, match=cls.variable):
        cls(size=8)
    monkeypatch.setenv(cls.variable, str(folder))
    assert np.array_equal(cls(size=8)[2]["image"], given[2]["image"])


@pytest.mark.parametrize("name", NAMES + SCENES)
def test_training_sets_are_asked_by_step(folder, name):
    dataset = find(name)(size=8, data_root=folder)
    assert dataset.keyed == name.endswith("Train")
    examples = [dataset[StepKey(step, 1)] for step in range(40)]
    again = [dataset[StepKey(step, 1)] for step in range(40)]
    for one, two in zip(examples, again, strict=True):
        plain = dataset[one["image_id"]]["image"]
        assert np.array_equal(one["image"], plain[:, ::-1] if one["flip"] else plain)
        assert np.array_equal(one["image"], two["image"])
    assert {example["image_id"] for example in examples} == {0, 1, 2}
    assert {e["flip"] for e in examples} == ({False, True} if dataset.flip_p else {False})
    assert dataset.flip_p == (0.5 if name in SCENES and dataset.keyed else 0)


def test_classes_are_folders(folder):
    dataset = imagenet.ImageNetTrain(config={"size": 8, "data_root": str(folder)})
    labels = [
        (example["class_label"], example["human_label"])
        for example in map(dataset.__getitem__, range(3))
    ]
    assert labels == [(0, "cat"), (0, "cat"), (1, "dog")]


@pytest.mark.parametrize("degradation", ["pil_nearest", "pil_bicubic", "bilinear"])
def test_super_resolution_gives_both_sizes(folder, degradation):
    dataset = imagenet.ImageNetSRTrain(size=16, degradation=degradation, data_root=folder)
    example = dataset[1]
    large = Image.open(example["file_path_"]).crop((2, 0, 18, 16))
    filters = Image.Resampling[degradation.removeprefix("pil_").upper()]
    small = np.asarray(large.resize((4, 4), filters)) / 127.5 - 1
    assert np.array_equal(example["LR_image"], small.astype(np.float32))


def test_degradations_that_are_not_offered_are_refused(folder):
    with pytest.raises(ValueError, match=r"bsrgan_light.*pil_bicubic"):
        imagenet.ImageNetSRTrain(size=8, degradation="bsrgan_light", data_root=folder)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no image"):
        imagenet.ImageNetTrain(size=8, data_root=tmp_path)
