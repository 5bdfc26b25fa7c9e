"""The files speak of the project: not of a machine, a mirror, or how they were written."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SELF = Path(__file__).relative_to(REPO)


def _whole_words(*words: str) -> str:
    """A pattern for any of `words`; a tilde inside a word keeps this file from matching."""
    return r"(?i)\b(?:" + "|".join(word.replace("~", "") for word in words) + r")\b"


#: What may not be in any text file -> pattern.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~-])/(?:work|home|root|Users|mnt|scratch)/[\w.-]+",
    "a private package index": r"--(?:extra-)?index-url\s+\S+|/(?:artifactory|nexus)/",
    "a local address": r"\b(?:10|127|192\.168)\.\d+\.\d+\.\d+\b|localhost:\d+",
    "a word on the tools of writing": _whole_words(
        "chat~gpt", r"gpt-?[3-9]", "clau~de", "anth~ropic", "code~x", "copi~lot", "gemini pro",
        "large language mod~el", r"ai[- ]gener~ated", r"gener~ated by an? (?:ai|mod~el|ass~istant)",
    ),
    "a word on where code is from": _whole_words(r"(?:ported|copied|adapted|borrowed)\s+from"),
    "a secret": r"\b(?:hf|ghp|github_pat|sk)_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|PRIVATE KEY-----",
}  # fmt: skip
SUFFIXES = {
    "", ".py", ".pyi", ".md", ".txt", ".toml", ".cfg", ".yaml", ".yml", ".json", ".jsonl", ".cff",
    ".ini", ".sh", ".ipynb", ".css", ".html", ".typed",
}  # fmt: skip


@cache
def _files() -> tuple[Path, ...]:
    """The text files that are, or would be, under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return tuple(n for n in names if n.suffix in SUFFIXES and (REPO / n).is_file() and n != SELF)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_mentions(what):
    pattern, found = re.compile(FORBIDDEN[what]), []
    for name in _files():
        text = (REPO / name).read_text(encoding="utf-8", errors="replace")
        found += [
            f"{name}:{text.count(chr(10), 0, hit.start()) + 1}: {hit[0]}"
            for hit in pattern.finditer(text)
        ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", "see /home/" + "someone/data"),
        ("a word on the tools of writing", "written with Cla" + "ude"),
        ("a word on where code is from", "Ported" + " from another repository"),
        ("a private package index", "--index" + "-url https://somewhere/simple"),
    ],
)
def test_the_patterns_find_what_they_should(what, text):
    assert re.search(FORBIDDEN[what], text)


def _library() -> list[Path]:
    return [REPO / name for name in _files() if name.parts[0] == "ldm" and name.suffix == ".py"]


def test_the_library_prints_nothing():
    found = [
        f"{path.relative_to(REPO)}:{node.lineno}"
        for path in _library()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert len(_library()) > 30
    assert found == []


def test_the_library_does_not_know_the_folder_beside_the_checkout():
    found = [p for p in _library() if re.search(r"\.\./shared|[\"']shared[\"']", p.read_text())]
    assert found == []


def test_only_small_files_are_kept():
    """Weights of the default model are the one exception."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPO, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    big = [
        str(n)
        for n in names
        if (REPO / n).is_file()
        and (REPO / n).stat().st_size > 2_000_000
        and n.parts[:3] != ("models", "ldm", "playroom")
    ]
    assert big == []
