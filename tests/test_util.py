"""Helpers that every layer uses."""

from ldm.util import progress_bar, progress_of


def test_a_progress_bar_gives_every_value_and_is_silent_without_a_label(capsys):
    assert list(progress_bar(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capsys.readouterr().err
    assert list(progress_bar(range(3), None)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_progress_bar_does_not_fill_a_file(capsys):
    list(progress_bar(range(1000), "counting"))
    assert capsys.readouterr().err.count("\r") < 10


def test_progress_of_pieces_counts_what_it_is_told(capsys):
    with progress_of("drawing", 10) as done:
        done(4)
        done(6)
    shown = capsys.readouterr().err
    assert "drawing" in shown
    assert "/10" in shown
