"""Files and functions stay small enough to be held in the head."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
MAX_FILE, MAX_FUNCTION = 500, 60

FILES = sorted(
    [
        *REPO.glob("ldm/**/*.py"),
        *REPO.glob("scripts/**/*.py"),
        *REPO.glob("benchmarks/**/*.py"),
        REPO / "main.py",
        REPO / "setup.py",
    ]
)


def _name(path: Path) -> str:
    return str(path.relative_to(REPO))


def _body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function below its signature (a public one can be long by itself)."""
    return node.end_lineno - node.body[0].lineno + 1


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_no_file_over_500_lines_no_function_over_60(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        node.name: _body(node) for node in ast.walk(ast.parse(text)) if isinstance(node, functions)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION} == {}


def test_there_is_something_to_measure():
    assert len(FILES) > 30
