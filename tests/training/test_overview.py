"""The table of several runs: a row for each word of each, and means of words learned again."""

import json

import pytest

from ldm.training.overview import write_overview

#: As a page says it: Markdown would take a bare one for HTML.
BEAR = r"\<bear>"


def left(folder, seed, iou):
    word = {"word": "<bear>", "nearest": ["bear", "toy"], "moved": 1.0 + seed, "iou": iou,
            "iou_before": 0.25}  # fmt: skip
    other = {"word": f"<only{seed}>", "nearest": [], "moved": 0.5, "iou": None, "iou_before": None}
    folder.mkdir()
    summary = {"words": [word, other], "best": {"step": 40, "loss": 0.125}}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def runs(tmp_path):
    for seed, iou in ((1, 0.5), (2, 0.7)):
        left(tmp_path / f"seed{seed}", seed, iou)
    (tmp_path / "seed3").mkdir()  # was interrupted before it was summed up
    (tmp_path / "seed2" / "report.html").touch()
    return tmp_path


def test_every_word_of_every_run_and_means_of_words_of_several(runs, capfd):
    path = write_overview(runs, ["seed1", "seed2", "seed3"])
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if "<" in line]
    assert rows == [
        ["seed1", BEAR, "bear, toy", "2.00", "0.25", "0.50", "0.1250 (step 40)"],
        ["seed1", r"\<only1>", "-", "0.50", "-", "-", "0.1250 (step 40)"],
        ["[seed2](seed2/report.html)", BEAR, "bear, toy", "3.00", "0.25", "0.70",
         "0.1250 (step 40)"],
        ["[seed2](seed2/report.html)", r"\<only2>", "-", "0.50", "-", "-", "0.1250 (step 40)"],
        ["mean of 2 runs", BEAR, "", "2.50 ± 6.35", "0.25 ± 0.00", "0.60 ± 1.27"],
    ]  # fmt: skip
    assert "mean of 2" in capfd.readouterr().err


def test_a_name_with_spaces_leads_to_its_report_too(tmp_path):
    left(tmp_path / "my images", 1, 0.5)
    (tmp_path / "my images" / "report.html").touch()
    assert "| [my images](my%20images/report.html) |" in (
        write_overview(tmp_path, ["my images"]).read_text()
    )


def test_nothing_is_written_where_no_run_was_summed_up(runs):
    assert write_overview(runs, ["seed3"]) is None
    assert not (runs / "overview.md").exists()
