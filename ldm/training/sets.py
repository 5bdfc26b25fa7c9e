"""Learn the words of a drawn set by name, and find the pictures and words of a run again."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ldm.data.playroom import PlayroomConcepts
from ldm.inference import rooted
from ldm.training.cli import parse
from ldm.training.config import load_config


def learn_set(name: str, logdir: str | Path, *, steps: int | None = None, seed: int = 23) -> Path:
    """Learn the words of the playroom's set `name` with the main job; returns the run's folder."""
    from ldm.training.run import train

    given = ["--base", str(rooted("configs/mcpl.yaml")), "--name", name, "--seed", str(seed)]
    given += ["--logdir", str(logdir), f"data.params.train.params.name={name}"]
    options = parse([*given, *(["--max_steps", str(steps)] if steps else [])])
    return train(load_config(options), options).root


def words_of(run: str | Path) -> Path:
    """The file of a run's learned words.

    Raises:
        ValueError: when the folder is that of no run, or of one that has not saved words yet.
    """
    path = Path(run) / "checkpoints" / "embeddings.safetensors"
    if not path.is_file():
        raise ValueError(f"{run} holds no learned words ({path.relative_to(run)} is not there)")
    return path


def set_of(run: str | Path) -> str:
    """The name of the playroom's set that a run learned.

    Raises:
        ValueError: when it learned from something else.
    """
    return str(_configuration(run).data.params.train.params.name)


def data_of(run: str | Path) -> PlayroomConcepts:
    """The pictures that a run learned from, drawn again.

    Raises:
        ValueError: when it learned from something else than a set of the playroom.
    """
    config = _configuration(run)
    drawn = config.data.params.train.params
    own = {key: drawn[key] for key in ("size", "n_images", "seed") if key in drawn}
    # A data set that is given no seed has that of its run.
    return PlayroomConcepts(str(drawn.name), **{"seed": config.seed, **own})


def _configuration(run: str | Path) -> Any:
    """The newest configuration of a run that learned a set of the playroom."""
    for path in sorted(Path(run).glob("configs/*-project.yaml"), reverse=True):
        config = OmegaConf.load(path)
        if OmegaConf.select(config, "data.params.train.params.name") is not None:
            return config
    raise ValueError(
        f"{run} did not learn from a set of the playroom: give a run of configs/mcpl.yaml, such as "
        "python main.py --base configs/mcpl.yaml makes"
    )
