"""Helpers that every layer uses."""

import pytest
import torch

from ldm.util import bfloat16_products, progress_bar, progress_of, tell_no_bfloat16

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("features", "fast"),
    [({"amx_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({}, False)],
)
def test_products_are_in_bfloat16_where_the_cpu_has_it(features, fast, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    tell_no_bfloat16.cache_clear()
    x = torch.ones(2, 2)
    with bfloat16_products(CPU, wanted=False):
        assert (x @ x).dtype == torch.float32
    assert not caplog.text
    for _ in range(2):
        with bfloat16_products(CPU):
            assert (x @ x).dtype == (torch.bfloat16 if fast else torch.float32)
    assert caplog.text.count("no instructions for bfloat16") == (not fast)
