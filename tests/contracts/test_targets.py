"""Every class that a configuration names exists and accepts the parameters given there."""

import importlib.util
import inspect

import pytest

from ldm.util import get_obj_from_str
from tests.contracts.published import (
    NEVER_PUBLISHED,
    OPTIONAL,
    REPO,
    config_files,
    load,
    parts,
)

#: Target -> the parameter names that any configuration gives it.
USES: dict[str, set[str]] = {}
#: Target -> the files that name it.
FILES: dict[str, set[str]] = {}
for _file in config_files():
    for _path, _part in parts(load(_file)):
        USES.setdefault(_part["target"], set()).update(_part.get("params") or {})
        FILES.setdefault(_part["target"], set()).add(str(_file.relative_to(REPO)))

#: What ``main.py`` adds to configurations, or older ones name.
MAIN = [
    "main.CUDACallback",
    "main.DataModuleFromConfig",
    "main.ImageLogger",
    "main.LearningRateMonitor",
    "main.ModeSwapCallback",
    "main.SetupCallback",
    "main.WrappedDataset",
]
#: Put in by ``main.py`` from the command line.
INJECTED = {
    "ldm.modules.embedding_manager.EmbeddingManager": {"embedder"},
    "ldm.data.personalized.PersonalizedBase": {"data_root", "placeholder_token"},
    "ldm.data.personalized_style.PersonalizedBase": {"data_root", "placeholder_token"},
}


def _published() -> list[str]:
    return sorted(target for target in USES if not target.startswith(NEVER_PUBLISHED))


def _resolve(target: str) -> type:
    package = target.partition(".")[0]
    if target.startswith(OPTIONAL) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return get_obj_from_str(target)


@pytest.mark.parametrize("target", [*_published(), *MAIN])
def test_every_target_resolves(target):
    assert inspect.isclass(_resolve(target)), FILES.get(target)


@pytest.mark.parametrize("target", _published())
def test_every_parameter_is_accepted(target):
    """Followed through the base classes, where a constructor passes the rest on."""
    kind = _resolve(target)
    given = USES[target] | INJECTED.get(target, set())
    accepted: set[str] = set()
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        accepted |= {p.name for p in parameters}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    else:
        return
    assert given <= accepted, f"{target} takes no {sorted(given - accepted)}"


@pytest.mark.parametrize("path", config_files(), ids=lambda p: str(p.relative_to(REPO)))
def test_a_model_needs_nothing_unpublished_or_optional(path):
    """So ``config.model`` can always be built; only the data of training may be out of reach."""
    for keys, part in parts(load(path).get("model"), ("model",)):
        if part["target"].startswith((*NEVER_PUBLISHED, *OPTIONAL)):
            assert keys[-1] == "lossconfig", (keys, part["target"])
            assert not part["target"].startswith(NEVER_PUBLISHED)


def test_nothing_pretends_to_be_what_was_never_published():
    for target in USES:
        if target.startswith(NEVER_PUBLISHED):
            with pytest.raises(ImportError):
                get_obj_from_str(target)
