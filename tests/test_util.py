"""Helpers that every layer uses."""

from ldm.util import progress_bar


def test_a_progress_bar_gives_every_value_and_is_silent_without_a_label(capsys):
    assert list(progress_bar(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err
    assert list(progress_bar(range(3), None)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_progress_bar_does_not_fill_a_file(capsys):
    list(progress_bar(range(1000), "counting"))
    assert capsys.readouterr().err.count("\r") < 10
