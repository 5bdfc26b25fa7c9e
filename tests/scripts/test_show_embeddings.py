"""`scripts/show_embeddings.py`: what a file of learned words holds."""

import torch

from ldm.checkpoint import save_safetensors
from scripts import show_embeddings
from tests.golden import FOLDER


def test_rows_say_what_the_file_holds(files):
    layout, rows = show_embeddings.describe(files.words)
    assert layout == "textual_inversion"
    assert [row[:3] for row in rows] == [("<teddy>", "2", "32"), ("<board>", "1", "32")]
    assert {row[5] for row in rows} == {"no known model"}
    _, rows = show_embeddings.describe(files.words.with_suffix(".safetensors"))
    assert {row[0]: row[4] for row in rows} == {"<teddy>": "bear", "<board>": "skateboard"}


def test_the_norm_is_the_mean_length_of_the_vectors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors({"<x>": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, path, {})
    assert show_embeddings.describe(path)[1][0][3] == "3.000"


def test_the_table_names_the_fitting_model_and_any_spelling(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "words.safetensors"
    save_safetensors({"[red]": torch.ones(1, 768), "<bär>": torch.ones(1, 128)}, path, {})
    assert show_embeddings.main([str(path), str(FOLDER / "embeddings_gs-original.pt")]) == 0
    shown = capsys.readouterr().out
    for text in ("[red]", "<bär>", "v1-inference.yaml", "playroom.yaml", "*", "@"):
        assert text in shown


def test_a_file_that_is_none_is_an_error_and_the_others_are_shown(files, tmp_path, capsys):
    wrong = tmp_path / "notes.txt"
    wrong.write_text("hello")
    assert show_embeddings.main([str(wrong), str(files.words)]) == 1
    shown = capsys.readouterr()
    assert "is a text file, not a checkpoint" in shown.err
    assert "<teddy>" in shown.out
