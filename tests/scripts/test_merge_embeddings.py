"""``merge_embeddings.py``: words of several files in one."""

import pytest
import torch

from ldm.checkpoint import read_embeddings, save_safetensors, save_torch
from ldm.modules.embedding_manager import write_words
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


class TestIds:
    """What the released code goes by: it puts a word's vectors wherever its id is in a text."""

    @pytest.fixture
    def ids(self, calling, tmp_path):
        """The ids in both files of a merge, and what was said; `given` maps names to ids."""

        def call(given, *more):
            for name, numbers in given.items():
                vectors = {word: torch.ones(1, 4) for word in numbers}
                write_words(tmp_path / name, vectors, numbers)
            out = tmp_path / "out.pt"
            renames = [part for text in more for part in ("--rename", f"{tmp_path}/{text}")]
            inputs = [tmp_path / name for name in given]
            code, said = calling(main, "--manager_ckpts", *inputs, "--output_path", out, *renames)
            assert code == 0, said
            stored = torch.load(out, weights_only=False)["string_to_token"]
            stored = {word: int(number) for word, number in stored.items()}
            assert stored == read_embeddings(out.with_suffix(".safetensors")).tokens
            return stored, said

        return call

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_of_the_files_are_kept(self, ids, suffix):
        stored, said = ids({f"a{suffix}": {"*": 1008}, f"b{suffix}": {"@": 1030}})
        assert stored == {"*": 1008, "@": 1030}
        assert "new ids" not in said

    def test_of_a_renamed_word_are_no_other_tokens(self, ids):
        stored, said = ids({"a.pt": {"*": 1008}, "b.pt": {"*": 1008}}, "b.pt:*=@")
        assert stored == {"*": 1008, "@": 49408}
        (line,) = (line for line in said.splitlines() if "new ids" in line)
        assert "new ids for @ (49408), whose" in line
        assert "the released code will not find" in line
        assert "names" in line

    def test_go_with_the_name_where_a_file_has_it(self, ids):
        stored, said = ids({"a.pt": {"*": 1008, "@": 1030}}, "a.pt:*=@", "a.pt:@=*")
        assert stored == {"@": 1030, "*": 1008}
        assert "new ids" not in said
        both = {"a.pt": {"*": 1008}, "b.safetensors": {"@": 1030}}
        assert ids(both, "a.pt:*=@", "b.safetensors:@=<x>")[0] == {"@": 1030, "<x>": 49408}

    def test_in_which_files_differ_are_not_taken_for_another_file(self, ids):
        given = {"a.pt": {"*": 1008}, "b.pt": {"@": 1030}, "c.pt": {"@": 1009}}
        stored, _ = ids(given, "a.pt:*=@", "b.pt:@=<b>", "c.pt:@=<c>")
        assert stored == {"@": 49408, "<b>": 49409, "<c>": 49410}

    def test_behind_the_vocabulary_are_all_different(self, ids):
        given = {"a.pt": {"<cat>": 49408}, "b.pt": {"<dog>": 49408}, "c.pt": {"<hat>": 49409}}
        stored, said = ids(given)
        assert stored == {"<cat>": 49408, "<dog>": 49410, "<hat>": 49409}
        assert "new ids for <dog> (49410), whose" in said

    @pytest.mark.parametrize("header", [None, "no JSON", "[1]", '{"<cat>": "1030"}'])
    def test_of_files_without_them_are_new(self, calling, tmp_path, header):
        path, out = tmp_path / "learned_embeds.safetensors", tmp_path / "out.pt"
        metadata = None if header is None else {"string_to_token": header}
        save_safetensors({"<cat>": torch.ones(1, 4)}, path, metadata)
        code, said = calling(main, "--manager_ckpts", path, "--output_path", out)
        assert code == 0, said
        assert read_embeddings(out).tokens == {"<cat>": 49408}
        assert "<cat> (49408)" in said


class TestOutput:
    @pytest.mark.parametrize(
        ("inputs", "output", "over"),
        [
            (["a.safetensors", "b.safetensors"], "a.pt", "a.safetensors"),
            (["a.safetensors", "b.safetensors"], "b.bin", "b.safetensors"),
            (["a.safetensors", "b.safetensors"], "folder/../b.safetensors", "b.safetensors"),
            (["a.pt", "b.pt"], "a.pt", "a.pt"),
            (["a.pt", "b.pt"], "link.pt", "link.pt"),
        ],
    )
    def test_never_replaces_an_input(self, calling, tmp_path, inputs, output, over):
        (tmp_path / "folder").mkdir()
        for number, name in enumerate(inputs):
            write_words(tmp_path / name, {f"<{number}>": torch.ones(1, 4)}, {f"<{number}>": 30522})
        (tmp_path / "link.pt").symlink_to("a.pt")
        before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        paths = [tmp_path / name for name in inputs]
        code, said = calling(main, "--manager_ckpts", *paths, "--output_path", tmp_path / output)
        assert code == 1
        assert said.count("error: ") == 1
        for words in (f"--output_path {tmp_path / output} ", f"{over} is one of", "-merged"):
            assert words in said
        assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before

    @pytest.mark.parametrize(
        ("output", "written"),
        [
            ("out.pt", ["out.pt", "out.safetensors"]),
            ("words.v2", ["words.v2", "words.v2.safetensors"]),
            ("words", ["words", "words.safetensors"]),
            ("out.safetensors", ["out.safetensors"]),
        ],
    )
    def test_all_files_written_are_named(self, calling, files, tmp_path, output, written):
        folder = tmp_path / "folder"
        code, said = calling(main, "--manager_ckpts", files["a"], "--output_path", folder / output)
        assert code == 0, said
        assert sorted(path.name for path in folder.iterdir()) == written
        named = " and ".join(str(folder / name) for name in written)
        assert said.splitlines()[-1].endswith(f"wrote {named}")


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
