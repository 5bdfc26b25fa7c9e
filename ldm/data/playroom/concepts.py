"""Named sets as pictures: drawn once, written as files, read like anybody's own photographs."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.playroom.scene import Scene, render_scene
from ldm.data.playroom.sets import ConceptSet, get_concept_set

#: The file that says which set a folder holds.
RECIPE = "recipe.json"


def concept_scenes(
    name: str, size: int = 64, n_images: int = 4, seed: int = 0
) -> list[tuple[str, Scene]]:
    """The pictures of a set, each with its kind: "image", or "concept" and "subject" for Lego.

    Of a Lego set, the first half shows the concept; a set of several things shows them in turn.
    Raises ValueError for an unknown set or fewer than one picture of a kind and a thing.
    """
    chosen = get_concept_set(name)
    counts = {"image": n_images}
    if chosen.subject is not None:
        counts = {"concept": n_images - n_images // 2, "subject": n_images // 2}
    if min(counts.values()) < len(chosen.things):
        least = len(chosen.things) * len(counts)
        raise ValueError(
            f"the set {name!r} needs at least one picture of every kind and thing, so {least}, "
            f"got {n_images}"
        )
    pictures = [(kind, number) for kind, count in counts.items() for number in range(count)]
    return [
        (kind, _draw(chosen, kind, size, seed, (k, number)))
        for k, (kind, number) in enumerate(pictures)
    ]


def _draw(chosen: ConceptSet, kind: str, size: int, seed: int, numbers: tuple[int, int]) -> Scene:
    """One picture of a set: its number in the set, and among those of its kind."""
    number, of_kind = numbers
    shown = chosen.things[of_kind % len(chosen.things)]
    spec, caption = shown.spec, shown.sentence
    if kind == "subject" and shown.subject is not None:
        spec, caption = shown.subject, shown.subject_sentence or ""
    rng = Random(f"concepts:{chosen.name}:{seed}:{number}")
    if chosen.places:
        spec = replace(spec, place=chosen.places[number % len(chosen.places)])
    return render_scene(replace(spec, seed=rng.getrandbits(40)), size, caption=caption)


def word_masks(name: str, scene: Scene) -> dict[str, np.ndarray]:
    """What each learnable word of a set is in one of its pictures, bool (size, size).

    Of a set of several things, the words of what the picture shows.
    """
    chosen = get_concept_set(name)
    masks = {one.name: one.mask for one in scene.objects}
    if scene.ground is not None:
        masks["ground"] = scene.ground
    shown = (
        {word: what for word, what in chosen.all_shows.items() if what in masks}
        if chosen.others
        else chosen.shows
    )
    return {word: masks[what] for word, what in shown.items()}


def digest_of(name: str, scenes: Sequence[tuple[str, Scene]]) -> str:
    """What tells one drawing of a set from every other: pictures, masks and sentences, in hex.

    `scenes` are what :func:`concept_scenes` draws: the same set, size, number and seed are drawn
    otherwise once the renderer has changed.
    """
    digest = sha256(get_concept_set(name).sentence.encode())
    for kind, scene in scenes:
        digest.update(f"{kind}:{scene.caption}:{scene.image.shape}".encode())
        digest.update(scene.image.tobytes())
        for word, mask in word_masks(name, scene).items():
            digest.update(word.encode() + mask.tobytes())
    return digest.hexdigest()[:12]


def write_concept_set(
    folder: str | Path, name: str, size: int = 256, n_images: int = 4, seed: int = 0, *,
    scenes: Sequence[tuple[str, Scene]] | None = None,
) -> Path:  # fmt: skip
    """Writes a set as people have theirs: pictures, a sentence for each, masks beside them.

    `1.png` ..., `metadata.jsonl` (file_name, text in markup, kind), `sentence.txt`, and
    `masks/1-<word>.png` (white where the word is). The folder appears whole or not at all; a folder
    that already holds this very set, as it is drawn now, is left as it is. Returns the folder.
    `scenes` are the set's pictures where they are at hand; without them they are drawn.
    Raises FileExistsError when it holds something else.
    """
    folder = Path(folder)
    scenes = concept_scenes(name, size, n_images, seed) if scenes is None else scenes
    recipe = {"set": name, "size": size, "n_images": n_images, "seed": seed,
              "digest": digest_of(name, scenes)}  # fmt: skip
    if _holds(folder, recipe):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} holds something else than the set {recipe}, or the set as another "
            "version drew it; give an empty folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(draft, name, scenes)
        (draft / RECIPE).write_text(json.dumps(recipe) + "\n", encoding="utf-8")
        draft.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        os.replace(draft, folder)
    except OSError:
        if not _holds(folder, recipe):  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _holds(folder: Path, recipe: dict[str, Any]) -> bool:
    """Whether a folder is the set that `recipe` describes."""
    note = folder / RECIPE
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == recipe


def _write(folder: Path, name: str, scenes: Sequence[tuple[str, Scene]]) -> None:
    """All files of a set."""
    (folder / "masks").mkdir()
    rows = []
    for number, (kind, scene) in enumerate(scenes, start=1):
        Image.fromarray(scene.image).save(folder / f"{number}.png")
        row: dict[str, Any] = {"file_name": f"{number}.png", "text": scene.caption}
        rows.append(row if kind == "image" else {**row, "kind": kind})
        for word, mask in word_masks(name, scene).items():
            picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))
            picture.save(folder / "masks" / f"{number}-{word.strip('<>')}.png")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (folder / "sentence.txt").write_text(get_concept_set(name).sentence + "\n", encoding="utf-8")
