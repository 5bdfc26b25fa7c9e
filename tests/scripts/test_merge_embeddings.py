"""``merge_embeddings.py``: words of several files in one."""

import pytest
import torch

from ldm.checkpoint import read_embeddings, save_torch
from merge_embeddings import main
from tests.golden import FOLDER

ORIGINAL = FOLDER / "embeddings_gs-original.pt"


@pytest.fixture
def files(tmp_path):
    """Three files of textual inversion: two of one word each, one of another model."""
    paths = {}
    for name, word, width, number in (
        ("a", "*", 4, 1008), ("b", "*", 4, 1008), ("c", "<cat>", 4, 1008), ("wide", "@", 8, 1030),
    ):  # fmt: skip
        paths[name] = tmp_path / f"{name}.pt"
        vectors = torch.nn.ParameterDict({word: torch.full((2, width), float(ord(name[0])))})
        save_torch(
            {"string_to_token": {word: torch.tensor(number)}, "string_to_param": vectors},
            paths[name],
        )
    return paths


@pytest.fixture
def merge(calling, tmp_path):
    def call(*paths, more=()):
        out = tmp_path / "out.pt"
        code, said = calling(main, "--manager_ckpts", *paths, "--output_path", out, *more)
        return code, said, out

    return call


def test_words_of_both_files(merge, files):
    code, said, out = merge(files["a"], files["c"])
    assert code == 0, said
    read = read_embeddings(out)
    assert read.vectors["*"].tolist() == [[ord("a")] * 4] * 2
    assert read.vectors["<cat>"].tolist() == [[ord("c")] * 4] * 2
    assert read.tokens["*"] == 1008
    assert read.tokens["<cat>"] != 1008, "one id, one word"


def test_the_original_code_can_read_it(merge, files):
    _, _, out = merge(files["a"], files["c"])
    content = torch.load(out, weights_only=False)
    assert isinstance(content["string_to_param"], torch.nn.ParameterDict)
    assert set(content["string_to_token"]) == {"*", "<cat>"}
    twin = read_embeddings(out.with_suffix(".safetensors")).vectors
    assert all(
        torch.equal(twin[word], vectors) for word, vectors in content["string_to_param"].items()
    )


def test_a_clash_is_refused_by_name(merge, files):
    code, said, out = merge(files["a"], files["b"])
    assert code == 1
    for words in ("'*'", "a.pt", "b.pt", f"--rename '{files['b']}:*="):
        assert words in said
    assert not out.exists()


def test_renamed_in_one_file(merge, files):
    code, said, out = merge(files["a"], files["b"], more=["--rename", f"{files['b']}:*=<dog>"])
    assert code == 0, said
    vectors = read_embeddings(out).vectors
    assert {word: value[0, 0].item() for word, value in vectors.items()} == {
        "*": ord("a"), "<dog>": ord("b"),
    }  # fmt: skip


def test_renamed_wherever_it_is(merge, files):
    _, _, out = merge(files["a"], files["c"], more=["--rename", "*=<dog>", "-sd"])
    assert set(read_embeddings(out).vectors) == {"<dog>", "<cat>"}


def test_a_file_of_the_original_code(merge):
    _, _, out = merge(ORIGINAL, more=["--stable_diffusion", "--rename", "@=<at>"])
    before, after = read_embeddings(ORIGINAL), read_embeddings(out)
    assert torch.equal(after.vectors["<at>"], before.vectors["@"])
    assert after.tokens["*"] == before.tokens["*"]


@pytest.mark.parametrize(
    ("names", "more", "expected"),
    [
        (["a", "wide"], [], ["another model", "8 wide", "4"]),
        (["a", "nowhere.pt"], [], ["nowhere.pt"]),
        (["a"], ["--rename", "<dog>=<x>"], ["<dog>", "'*'"]),
        (["a"], ["--rename", "*"], ["WORD=NEW"]),
        (["a"], ["--rename", "*="], ["WORD=NEW"]),
        (["a", "c"], ["--rename", "*=<cat>"], ["'<cat>'", "a.pt", "c.pt"]),
        (["a"], ["--output_pat", "x"], ["--output_pat"]),
    ],
)
def test_mistakes_are_one_message(merge, files, names, more, expected):
    code, said, out = merge(*(files.get(name, name) for name in names), more=more)
    assert code == 1
    assert said.count("error: ") == 1
    for words in expected:
        assert words in said
    assert not out.exists()
