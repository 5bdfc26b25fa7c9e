"""The drawn world: same numbers, same pictures; masks that tell the truth; relations that hold."""

import hashlib
import subprocess
import sys
from random import Random

import numpy as np
import pytest

from ldm.data.playroom import (
    OBJECTS,
    PLACES,
    ObjectSpec,
    PlayroomScenes,
    SceneSpec,
    parse_object,
    render_scene,
    sample_spec,
    scene,
    spec_from_names,
)
from ldm.data.playroom.relations import arrange
from ldm.data.playroom.scans import SCANS
from ldm.data.playroom.spec import ADJECTIVES, STATES
from ldm.data.steps import StepKey


def digest(index: int, size: int = 48) -> str:
    one = scene(3, index, size)
    return hashlib.sha256(one.image.tobytes() + one.caption.encode()).hexdigest()


def test_the_same_number_gives_the_same_bytes_in_any_order() -> None:
    forward = [digest(k) for k in range(12)]
    backward = [digest(k) for k in reversed(range(12))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 12


def test_another_process_draws_the_same_bytes() -> None:
    code = (
        "import hashlib; from ldm.data.playroom import scene; one = scene(3, 7, 48);"
        "import sys; sys.stdout.write("
        "hashlib.sha256(one.image.tobytes() + one.caption.encode()).hexdigest())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout == digest(7)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, ldm.data.playroom; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_masks_or_not_the_picture_is_the_same() -> None:
    for k in range(20):
        with_masks, without = scene(1, k, 32), scene(1, k, 32, masks=False)
        assert np.array_equal(with_masks.image, without.image)


def test_masks_are_disjoint_and_objects_well_visible() -> None:
    shares = []
    for k in range(150):
        one = scene(2, k, 48)
        layers = [o.mask for o in one.objects] + ([one.ground] if one.ground is not None else [])
        assert np.sum(layers, axis=0).max() <= 1
        for o in one.objects:
            left, top, right, bottom = o.box
            outside = o.mask.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()
            shares.append((o.visible, k, o.name))
    assert min(shares)[0] >= 0.55, min(shares)


def test_objects_stay_inside_the_picture() -> None:
    for k in range(300):
        rng = Random(f"inside:{k}")
        spec = sample_spec(rng)
        if spec.scan:
            continue
        for part in arrange(spec, Random(f"pose:{spec.seed}")):
            assert part.x - part.width / 2 > -0.03
            assert part.x + part.width / 2 < 1.03
            assert part.base >= -0.01
            assert part.base + part.height < 1.03


def test_masks_agree_between_sizes() -> None:
    for k in range(12):
        small, large = scene(5, k, 64), scene(5, k, 256)
        for a, b in zip(small.objects, large.objects, strict=True):
            share = b.mask.reshape(64, 4, 64, 4).mean((1, 3)) >= 0.5
            iou = (a.mask & share).sum() / (a.mask | share).sum()
            assert iou > 0.85, (k, a.name, iou)


def test_the_mask_is_where_the_object_is() -> None:
    """Taking the object's colour away changes nothing outside its mask (and its shadow)."""
    spec = spec_from_names(["red ball", "blue chair"], "beside", "grass", seed=4)
    other = spec_from_names(["green ball", "blue chair"], "beside", "grass", seed=4)
    one, two = render_scene(spec, 64), render_scene(other, 64)
    differs = (one.image != two.image).any(2)
    ball = one.objects[0].mask
    assert differs[ball].mean() > 0.5
    grown = ball.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            grown |= np.roll(ball, step, axis)
    assert not differs[~grown].any()


@pytest.mark.parametrize("name", sorted(OBJECTS))
@pytest.mark.parametrize("size", [64, 512])
def test_every_object_can_be_drawn(name: str, size: int) -> None:
    one = render_scene(spec_from_names([name]), size)
    assert one.image.shape == (size, size, 3)
    assert one.image.dtype == np.uint8
    assert one.objects[0].mask.mean() > 0.05


@pytest.mark.parametrize("place", sorted(PLACES))
def test_every_place_can_be_drawn(place: str) -> None:
    for size in (64, 512):
        one = render_scene(spec_from_names(["fox"], place=place), size)
        assert 0.1 < one.ground.mean() < 0.5


@pytest.mark.parametrize("state", STATES)
def test_every_state_changes_every_object(state: str) -> None:
    for name in OBJECTS:
        plain = render_scene(spec_from_names([name]), 48).image
        changed = render_scene(spec_from_names([f"{name}, {state}"]), 48).image
        assert (plain != changed).any(), name
    assert render_scene(spec_from_names([f"bear, {state}"]), 512).objects[0].mask.any()


@pytest.mark.parametrize("adjective", ADJECTIVES)
def test_every_adjective_shows(adjective: str) -> None:
    for name in ("bear", "ball"):
        plain = render_scene(spec_from_names([name]), 64).image
        changed = render_scene(spec_from_names([f"{adjective} {name}"]), 64).image
        assert (plain != changed).any()


@pytest.mark.parametrize("scan", sorted(SCANS))
def test_scans_are_grey_and_their_parts_lie_inside_one_another(scan: str) -> None:
    for seed in range(4):
        one = render_scene(SceneSpec(scan=scan, seed=seed), 64)
        assert (one.image == one.image[..., :1]).all()
        inner, outer = one.objects
        assert inner.mask.sum() > 20
        assert outer.mask.sum() > 20
        left, top, right, bottom = outer.box
        assert left <= inner.box[0] and top <= inner.box[1]  # noqa: PT018
        assert right >= inner.box[2] and bottom >= inner.box[3]  # noqa: PT018


def boxes(names: list[str], relation: str, seed: int) -> list[tuple[int, int, int, int]]:
    one = render_scene(spec_from_names(names, relation, seed=seed), 128)
    return [o.box for o in one.objects]


@pytest.mark.parametrize("seed", range(4))
def test_relations_hold(seed: int) -> None:
    for below in ("skateboard", "ball", "box", "taxi"):
        upper, lower = boxes(["bear", below], "on", seed)
        assert abs(upper[3] - lower[1]) < 14
        assert upper[0] < lower[2] and lower[0] < upper[2]  # noqa: PT018
    lower, upper = boxes(["ball", "bear"], "under", seed)
    assert abs(upper[3] - lower[1]) < 10
    inside, container = boxes(["bear", "basket"], "in", seed)
    assert container[0] < (inside[0] + inside[2]) / 2 < container[2]
    assert inside[1] < container[3] - 0.4 * (container[3] - container[1])
    for relation in ("and", "beside"):
        one, other = sorted(boxes(["bear", "cat"], relation, seed))
        assert one[2] <= other[0] + 2
    wearer, garment = boxes(["bear", "jacket"], "wearing", seed)
    assert garment[1] > wearer[1] + 10
    assert garment[3] <= wearer[3] + 2
    for pair in (["hamster", "watermelon"], ["dog", "bananas"]):
        eater, food = boxes(pair, "eating", seed)
        assert min(eater[2], food[2]) - max(eater[0], food[0]) > 8
        assert eater[1] < food[1] < (eater[1] + eater[3]) / 2 + 12
        assert food[3] <= eater[3] + 4


def test_relations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no seat"):
        render_scene(spec_from_names(["bear", "spoon"], "on"))
    with pytest.raises(ValueError, match="no container"):
        render_scene(spec_from_names(["bear", "ball"], "in"))
    with pytest.raises(ValueError, match="cannot wear"):
        render_scene(spec_from_names(["ball", "jacket"], "wearing"))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_counts_are_drawn_apart(count: int) -> None:
    from scipy.ndimage import label

    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    for seed in range(3):
        one = render_scene(spec_from_names([f"{words[count]} red balls"], seed=seed), 128)
        assert one.objects[0].count == count
        assert label(one.objects[0].mask)[1] == count


def test_descriptions() -> None:
    assert parse_object("brown fluffy teddy bear") == ObjectSpec("bear", "brown", "fluffy")
    assert parse_object("three red boxs").count == 3
    assert parse_object("dog, closed eyes") == ObjectSpec("dog", state="closed eyes")
    with pytest.raises(ValueError, match="no object is called 'dragon'"):
        parse_object("red dragon")
    with pytest.raises(ValueError, match="need 1 relations"):
        SceneSpec((ObjectSpec("dog"), ObjectSpec("cat")))
    with pytest.raises(ValueError, match="no place is called 'moon'"):
        spec_from_names(["dog"], place="moon")
    with pytest.raises(ValueError, match="state 'asleep' is unknown"):
        ObjectSpec("dog", state="asleep")


def test_the_data_set_serves_numbers_and_keys() -> None:
    data = PlayroomScenes(32, seed=9, length=10, masks=True)
    assert len(data) == 10
    example = data[3]
    assert example["image"].shape == (32, 32, 3)
    assert example["image"].dtype == np.float32
    assert -1 <= example["image"].min() < example["image"].max() <= 1
    assert example["mask"].max() <= 5
    with pytest.raises(IndexError):
        data[10]
    first, again = data[StepKey(5, 2)], data[StepKey(5, 2)]
    assert np.array_equal(first["image"], again["image"])
    assert first["image_id"] == 5 * 4096 + 2
    others = [data[key]["image"] for key in (StepKey(5, 3), StepKey(6, 2), StepKey(5, 2, 1))]
    assert not any(np.array_equal(first["image"], other) for other in others)


def test_captions_are_dropped_as_often_as_asked() -> None:
    data = PlayroomScenes(16, length=400, caption_dropout=0.25)
    empty = np.mean([data[k]["caption"] == "" for k in range(400)])
    assert 0.18 < empty < 0.32
    assert all(PlayroomScenes(16, caption_dropout=0)[k]["caption"] for k in range(30))
    with pytest.raises(ValueError, match="caption_dropout"):
        PlayroomScenes(caption_dropout=2)


def test_a_share_of_scenes_is_plain() -> None:
    def plain(number: int, share: float) -> bool:
        drawn = scene(4, number, 16, plain=share).spec
        return not drawn.scan and all(o.state is None and o.count == 1 for o in drawn.objects)

    numbers = range(300)
    assert all(plain(number, True) for number in numbers)
    shares = [np.mean([plain(number, share) for number in numbers]) for share in (0, 0.5)]
    assert 0.3 < shares[0] < shares[1] - 0.08 < 0.9
    with pytest.raises(ValueError, match="plain is a share"):
        PlayroomScenes(plain=1.5)
