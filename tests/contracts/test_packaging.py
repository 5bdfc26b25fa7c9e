"""Installing works, every import is declared, and what the documents point to exists."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ldm
from ldm.training.cli import build_parser, parse, trainer_arguments

REPO = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
SOURCES = [*sorted((REPO / "ldm").rglob("*.py")), *sorted((REPO / "scripts").glob("*.py"))]
#: Imported where they are used, with an error that says what to install.
OPTIONAL = {"taming", "torchvision", "ray", "diffusers", "IPython", "wandb"}

#: A path inside the checkout as documents write it; not the end of a longer path.
NAMED = re.compile(
    r"(?<![\w/.<>*-])((?:configs|scripts|docs|ldm|tests|benchmarks|models)/[\w./*{},-]*\w)"
)


def setup_arguments() -> dict:
    """What setup.py passes to setuptools, read without running it."""
    tree = ast.parse((REPO / "setup.py").read_text())
    names = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    }
    call = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    )
    arguments = {}
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.Name):
            arguments[keyword.arg] = names[keyword.value.id]
        elif keyword.arg in ("extras_require", "package_data", "name"):
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return arguments


def pinned() -> list[Requirement]:
    """The lines of requirements.txt."""
    lines = (REPO / "requirements.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def test_every_requirement_is_pinned_for_every_python():
    assert all(re.fullmatch(r"==[\d.]+", str(r.specifier)) for r in pinned())
    for version in ("3.10", "3.11", "3.12", "3.13"):
        here = [
            r.name
            for r in pinned()
            if r.marker is None or r.marker.evaluate({"python_version": version})
        ]
        assert len(here) == len(set(here)), f"one pin each for Python {version}"
        assert set(here) == {r.name for r in pinned()}, f"a pin for all for Python {version}"


def test_pins_lie_in_the_ranges_of_setup():
    ranges = {r.name: r.specifier for r in map(Requirement, setup_arguments()["install_requires"])}
    ranges |= {
        r.name: r.specifier for r in map(Requirement, setup_arguments()["extras_require"]["dev"])
    }
    for pin in pinned():
        version = str(pin.specifier).removeprefix("==")
        assert ranges[pin.name].contains(version), f"{pin} is outside {ranges[pin.name]}"
    assert set(ranges) == {pin.name for pin in pinned()}


def test_every_imported_package_is_declared():
    declared = {
        re.sub(r"[-_.]+", "-", Requirement(line).name.lower())
        for line in setup_arguments()["install_requires"]
    }
    providers, undeclared = packages_distributions(), set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            # A script may use another one beside it.
            own = {script.stem for script in path.parent.glob("*.py")} | {"ldm", "main"}
            for root in roots - OPTIONAL - set(sys.stdlib_module_names) - own:
                found = {re.sub(r"[-_.]+", "-", n.lower()) for n in providers.get(root, [root])}
                if not found & declared:
                    undeclared.add(f"{path.relative_to(REPO)}: {root}")
    assert undeclared == set()


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in (REPO / "ldm").rglob("*.py")}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []
    assert (REPO / "ldm" / "py.typed").is_file()


def test_every_file_beside_the_code_is_installed():
    patterns = setup_arguments()["package_data"][""]
    folders = [p for p in (REPO / "ldm").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    data = [p for p in folders if p.suffix not in (".py", ".pyc")]
    assert [p.name for p in data if not any(p.match(pattern) for pattern in patterns)] == []


def test_the_check_of_a_submission_is_make_test():
    script = REPO / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def test_make_says_what_it_would_run():
    def dry(target: str) -> str:
        command = ["make", "-n", target, f"VENV={REPO / 'no-such-venv'}"]
        return subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout

    assert "main.py --base configs/mcpl.yaml" in dry("mcpl")
    for target in ("mcpl", "test", "quick", "lint"):
        steps = dry(target)
        assert steps.index("-m venv") < steps.index("-r requirements.txt") < steps.index("-e .")
    assert "-m pytest" in dry("test")
    assert "ruff check" in dry("test")


@pytest.mark.slow
def test_an_installed_copy_imports_from_any_folder(tmp_path):
    pytest.importorskip("setuptools", reason="builds without a build environment of its own")
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "ldm", source / "ldm", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "main.py", "LICENSE", "NOTICE"):
        shutil.copy(REPO / name, source)
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    install = [sys.executable, "-m", "pip", "install", *flags, "--target", str(target), str(source)]
    subprocess.run(install, check=True, capture_output=True, cwd=elsewhere)
    code = "import ldm, ldm.visual, ldm.models.diffusion, main; print(ldm.__file__, main.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    shown = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=environment,
    )
    assert [Path(p).is_relative_to(target) for p in shown.stdout.split()] == [True, True]
    have = {p.relative_to(target) for p in (target / "ldm").rglob("*") if p.is_file()}
    wanted = {p.relative_to(source) for p in (source / "ldm").rglob("*") if p.is_file()}
    assert wanted <= have


def test_citation_names_both_papers():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    titles = [reference["title"] for reference in citation["references"]]
    assert any("An Image is Worth Multiple Words" in title for title in titles)
    assert any(title.startswith("Lego: Learning to Disentangle and Invert") for title in titles)
    assert citation["version"] == ldm.__version__
    assert f'license="{citation["license"]}"' in (REPO / "setup.py").read_text()
    assert f"[{ldm.__version__}]" in (REPO / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_names_exists(document):
    text = document.read_text()
    missing = [name for name in sorted(set(NAMED.findall(text))) if not exists(name)]
    assert missing == []
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []


def exists(name: str) -> bool:
    """Whether something in the checkout has this name; braces and stars stand for several."""
    if match := re.search(r"\{([^}]*)\}", name):
        parts = match[1].split(",")
        return all(exists(name[: match.start()] + part + name[match.end() :]) for part in parts)
    return any(REPO.glob(name))


def test_every_place_in_the_map_exists():
    """A place is written `file.py:name`, the name of a function, class or method."""
    places = re.findall(r"`([\w/]+\.py):([\w.]+)`", (REPO / "docs" / "map.md").read_text())
    assert len(places) > 20
    missing = [f"{file}:{name}" for file, name in places if name not in defined(file)]
    assert missing == []


def defined(file: str) -> set[str]:
    """Functions, classes, methods and constants of a file, methods as ``Class.method``."""
    if not (REPO / file).is_file():
        return set()
    names = set()
    for node in ast.parse((REPO / file).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def test_documented_flags_are_those_of_the_command_line():
    parser = build_parser()
    accepted = set(parser._option_string_actions) | {f"--{name}" for name in trainer_arguments()}
    text = (REPO / "docs" / "commands.md").read_text()
    documented = set(re.findall(r"(?<![\w-])(--?[a-z]\w*(?:-\w+)*)", text))
    assert documented - accepted - {"--trainer_argument"} == set()
    silent = [
        action.option_strings
        for action in parser._actions
        if not documented & set(action.option_strings) and action.dest != "help"
    ]
    assert silent == []


def test_main_py_commands_of_the_readme_parse():
    text = re.sub(r"\\\n\s+", "", (REPO / "README.md").read_text())
    commands = re.findall(r"^    (?:\.venv/bin/)?python main\.py (.*)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        options = parse(shlex.split(command, comments=True))
        assert options.flags.base
        assert options.trainer.keys() <= {"max_steps"}
