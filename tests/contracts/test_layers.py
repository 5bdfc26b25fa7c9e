"""Imports point down the layers only, and never in a circle."""

import ast
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

#: From the bottom up. A module belongs to the longest name here that it begins with.
LAYERS = [
    {"ldm", "ldm.util", "ldm.errors", "ldm.config_files", "ldm.checkpoint", "ldm.weight_files",
     "ldm.torch_file", "ldm.safe_pickle", "ldm.lr_scheduler", "ldm.prompts"},
    {"ldm.modules", "ldm.data"},
    {"ldm.concepts"},
    {"ldm.models"},
    {"ldm.editing", "ldm.visual"},
    {"ldm.inference"},
    {"ldm.evaluation"},
    {"ldm.callbacks"},
    {"ldm.training"},
    {"main", "scripts", "benchmarks"},
]  # fmt: skip
#: In one layer, but strangers to each other.
APART = {"ldm.modules", "ldm.data"}
#: The pure-text package, and what it may not know.
TEXT_ONLY = {"torch", "numpy", "pytorch_lightning", "transformers", "PIL", "omegaconf"}


def _modules() -> dict[str, Path]:
    files = [
        *REPO.glob("ldm/**/*.py"),
        *REPO.glob("scripts/**/*.py"),
        *REPO.glob("benchmarks/**/*.py"),
        REPO / "main.py",
    ]
    names = {}
    for file in files:
        parts = file.relative_to(REPO).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


MODULES = _modules()


def _level(module: str) -> int | None:
    """The layer of a module; None for one that is not ours."""
    while module:
        for level, names in enumerate(LAYERS):
            if module in names and (module != "ldm" or "." not in module):
                return level
        module = module.rpartition(".")[0]
    return None


def _group(module: str) -> str:
    return ".".join(module.split(".")[:2])


@cache
def _imports(module: str, top_only: bool = False) -> set[str]:
    """The modules that `module` imports, anywhere or (top_only) when it is imported itself."""
    tree = ast.parse(MODULES[module].read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    package = MODULES[module].name == "__init__.py"
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if package and node.level == 1 else -node.level]
                base = ".".join([*above, base] if base else above)
            found |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base
                for alias in node.names
            }
    return found


def test_every_module_has_a_layer():
    assert [m for m in MODULES if m.startswith("ldm.") and _level(m) == 0 and "." in m and not any(
        m == name or m.startswith(name + ".") for name in LAYERS[0] - {"ldm"}
    )] == []  # fmt: skip


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module):
    own = _level(module)
    wrong = []
    for other in _imports(module):
        level = _level(other) if other.split(".")[0] in ("ldm", "main", "scripts") else None
        if level is None:
            continue
        apart = _group(module) != _group(other) and {_group(module), _group(other)} <= APART
        if level > own or apart:
            wrong.append(other)
    assert wrong == [], f"{module} may not import these"


def test_no_circle_of_imports():
    state: dict[str, int] = {}

    def visit(module: str, way: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        assert state.get(module) != 1, " -> ".join([*way[way.index(module) :], module])
        state[module] = 1
        for other in sorted(_imports(module, top_only=True) & MODULES.keys() - {module}):
            visit(other, (*way, module))
        state[module] = 2

    for module in sorted(MODULES):
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if m.startswith("ldm.prompts")])
def test_prompts_are_text_only(module):
    assert {name.split(".")[0] for name in _imports(module)}.isdisjoint(TEXT_ONLY)


def test_the_rule_would_notice():
    """A guard of the guard: what is forbidden here is known to it."""
    assert _level("ldm.models.diffusion.ddpm") > _level("ldm.concepts.masks")
    assert _level("ldm.util") == 0
    assert _level("torch") is None
    assert "ldm.checkpoint" in _imports("ldm.models.diffusion.base")
