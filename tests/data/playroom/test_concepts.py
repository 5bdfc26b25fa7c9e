"""Named sets: files like a user's own, with exact masks for every word."""

import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.metadata import read_items
from ldm.data.playroom import (
    CONCEPT_SETS,
    PlayroomConcepts,
    Scene,
    concept_scenes,
    concepts,
    get_concept_set,
    word_masks,
    write_concept_set,
)
from ldm.data.playroom.__main__ import main
from ldm.data.playroom.concept_dataset import cache_folder
from ldm.data.steps import StepKey
from ldm.prompts import parse_sentence


@pytest.mark.parametrize("name", sorted(CONCEPT_SETS))
def test_every_set_shows_every_word(name: str) -> None:
    chosen = get_concept_set(name)
    for one in chosen.things:
        assert set(one.shows) <= {word.name for word in parse_sentence(one.sentence).words}
    for number, (kind, scene) in enumerate(concept_scenes(name, 64, 4)):
        masks = word_masks(name, scene)
        assert set(masks) == set(chosen.things[number % len(chosen.things)].shows)
        assert all(mask.sum() >= 12 for mask in masks.values()), (name, kind)
        assert np.sum(list(masks.values()), axis=0).max() <= 1
        assert all(one.visible >= 0.5 for one in scene.objects)


def test_the_papers_sets_are_there() -> None:
    sizes = [len(get_concept_set(name).shows) for name in CONCEPT_SETS if "lego" not in name]
    assert [sizes.count(n) for n in (3, 4, 5)] == [3, 3, 3]
    assert sum("lego" in name for name in CONCEPT_SETS) == 2 * 10
    assert sum("scan" in name for name in CONCEPT_SETS) == 3
    with pytest.raises(ValueError, match="no concept set is called 'x'"):
        get_concept_set("x")


def test_a_set_on_disk(tmp_path: Path) -> None:
    folder = write_concept_set(tmp_path / "set", "bear-skateboard", 32, 3, seed=1)
    items = read_items(folder)
    assert [item.path.name for item in items] == ["1.png", "2.png", "3.png"]
    assert {item.text for item in items} == {get_concept_set("bear-skateboard").sentence}
    _, scene = concept_scenes("bear-skateboard", 32, 3, seed=1)[1]
    assert np.array_equal(np.asarray(Image.open(folder / "2.png")), scene.image)
    mask = np.asarray(Image.open(folder / "masks" / "2-bear.png")) > 0
    assert np.array_equal(mask, scene.objects[0].mask)
    before = (folder / "2.png").stat().st_mtime_ns
    assert write_concept_set(folder, "bear-skateboard", 32, 3, seed=1) == folder
    assert (folder / "2.png").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="holds something else"):
        write_concept_set(folder, "chair-dog", 32)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def inverted(one: Scene) -> Scene:
    return replace(one, image=255 - one.image)


def masked_otherwise(one: Scene) -> Scene:
    return replace(one, objects=tuple(replace(o, mask=~o.mask) for o in one.objects))


@pytest.mark.parametrize("changed", [inverted, masked_otherwise])
def test_pictures_of_another_renderer_are_not_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Callable[[Scene], Scene]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = PlayroomConcepts("bear-skateboard", 16)
    assert PlayroomConcepts("bear-skateboard", 16).folder == before.folder
    write_concept_set(tmp_path / "own", "bear-skateboard", 16)
    drawn = concepts.render_scene
    monkeypatch.setattr(concepts, "render_scene", lambda *a, **k: changed(drawn(*a, **k)))
    with pytest.raises(FileExistsError, match="another version drew it; give an empty folder"):
        write_concept_set(tmp_path / "own", "bear-skateboard", 16)
    after = PlayroomConcepts("bear-skateboard", 16)
    assert after.folder != before.folder
    for number, scene in enumerate(after.scenes, start=1):
        assert np.array_equal(np.asarray(Image.open(after.folder / f"{number}.png")), scene.image)
        mask = np.asarray(Image.open(after.folder / f"masks/{number}-bear.png")) > 0
        assert np.array_equal(mask, after.masks(number - 1)["<bear>"])


def test_a_data_set_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, drawn = [], concepts.render_scene
    monkeypatch.setattr(concepts, "render_scene", lambda *a, **k: count.append(a) or drawn(*a, **k))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for folder in (None, tmp_path / "own"):
        count.clear()
        PlayroomConcepts("bear-skateboard", 16, 3, folder=folder)
        assert len(count) == 3


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the temporary folder is the user's own")
def test_kept_pictures_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert PlayroomConcepts("bear-skateboard", 16).folder.parent == folder == cache_folder()
    # Another user has a folder of their own, and takes none that was made for them.
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        cache_folder()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_lego_set_has_both_kinds(tmp_path: Path) -> None:
    items = read_items(write_concept_set(tmp_path / "lego", "lego-frozen", 32))
    assert [item.kind for item in items] == ["concept", "concept", "subject", "subject"]
    assert "<frozen" in items[0].text
    assert "<frozen" not in items[2].text
    kinds = [(kind, scene.objects[0].state) for kind, scene in concept_scenes("lego-frozen", 32)]
    assert kinds[0] == ("concept", "frozen in ice")
    assert kinds[3] == ("subject", None)
    with pytest.raises(ValueError, match="at least one picture"):
        concept_scenes("lego-frozen", 32, 1)


@pytest.mark.parametrize("count", range(2, 11))
def test_lego_learns_from_two_to_ten_pictures(tmp_path: Path, count: int) -> None:
    data = PlayroomConcepts("lego-melted", 16, count, folder=tmp_path / "set")
    kinds = [item.kind for item in data.items]
    assert kinds == ["concept"] * ((count + 1) // 2) + ["subject"] * (count // 2)
    shown = {data[StepKey(step, slot)]["image_id"] for step in range(30) for slot in (0, 1)}
    assert shown == set(range(count))
    digests = {scene.image.tobytes() for scene in data.scenes}
    assert len(digests) == count


def test_a_set_of_two_subjects_gives_each_a_word(tmp_path: Path) -> None:
    data = PlayroomConcepts("lego-melted-multi", 32, folder=tmp_path / "set")
    kinds = [item.kind for item in data.items]
    names = [scene.objects[0].name for scene in data.scenes]
    assert list(zip(kinds, names, strict=True)) == [
        ("concept", "box"), ("concept", "star"), ("subject", "box"), ("subject", "star"),
    ]  # fmt: skip
    states = [scene.objects[0].state for scene in data.scenes]
    assert states == ["burnt and melted", "burnt and melted", None, None]
    assert {word.name: (word.start, word.role) for word in data.words} == {
        "<subject>": ("thing", "noun"), "<other>": ("toy", "noun"),
        "<burnt>": ("strange", "concept"), "<melted>": ("strange", "concept"),
    }  # fmt: skip
    assert [set(data.masks(i)) for i in range(4)] == [{"<subject>"}, {"<other>"}] * 2
    with pytest.raises(ValueError, match="every kind and thing, so 4, got 3"):
        concept_scenes("lego-melted-multi", 32, 3)


def test_the_data_set_of_a_concept_set(tmp_path: Path) -> None:
    data = PlayroomConcepts("bear-skateboard", 32, folder=tmp_path / "set")
    assert {word.name for word in data.words} == {"<bear>", "<skateboard>"}
    example = data[StepKey(3, 1)]
    assert example["image"].shape == (32, 32, 3)
    assert {span.word for span in example["caption"].learnable} == {"<bear>", "<skateboard>"}
    assert not example["flip"]
    masks = data.masks(int(example["image_id"]))
    assert set(masks) == {"<bear>", "<skateboard>"}
    drawn = np.rint((example["image"] + 1) * 127.5).astype(np.uint8)
    assert np.array_equal(drawn, data.scenes[int(example["image_id"])].image)


def test_the_command_line_draws_sheets(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "a.png"), "--n", "4", "--size", "16", "--columns", "2"])
    assert Image.open(tmp_path / "a.png").size == (36, 36)
    main(["--out", str(tmp_path / "b.png"), "--concepts", "chair-dog", "--n", "2", "--size", "16"])
    assert (tmp_path / "b.png").is_file()
    main(["--vocabulary", str(tmp_path / "vocab.txt")])
    assert len((tmp_path / "vocab.txt").read_text().splitlines()) > 600
