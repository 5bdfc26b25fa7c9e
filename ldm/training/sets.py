"""Learn the words of a drawn set by name, and find the set and the words of a run again."""

from pathlib import Path

from omegaconf import OmegaConf

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
    for path in sorted(Path(run).glob("configs/*-project.yaml"), reverse=True):
        name = OmegaConf.select(OmegaConf.load(path), "data.params.train.params.name")
        if name is not None:
            return str(name)
    raise ValueError(
        f"{run} did not learn from a set of the playroom: give a run of configs/mcpl.yaml, such as "
        "python main.py --base configs/mcpl.yaml makes"
    )
