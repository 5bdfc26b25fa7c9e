"""The flags of ``main.py`` are frozen: those that people already use, and ours."""

import argparse

import pytest

from ldm.training.cli import build_parser

#: Flags of textual inversion's and MCPL's published commands, as they spell them.
RELEASED = {
    "-n", "--name", "-r", "--resume", "-b", "--base", "-t", "--train", "--no-test",
    "-p", "--project", "-d", "--debug", "-s", "--seed", "-f", "--postfix", "-l", "--logdir",
    "--scale_lr", "--datadir_in_name", "--actual_resume", "--data_root",
    "--embedding_manager_ckpt", "--placeholder_string", "--init_word", "--gpus", "--batch_size",
    "--presudo_words", "--attn_words", "--presudo_words_softmax", "--presudo_words_infonce",
    "--infonce_temperature", "--infonce_scale", "--adj_aug_infonce", "--attn_mask_type",
}  # fmt: skip
#: What this project adds. A new flag belongs here and in the documents.
OURS = {
    "-h", "--help", "--sentence", "--strategy", "--pseudo_words", "--pseudo_words_softmax",
    "--pseudo_words_infonce", "--repeats",
}  # fmt: skip

START = ["--base", "configs/latent-diffusion/txt2img-1p4B-finetune.yaml", "-t"]
RUN = ["--actual_resume", "CKPT", "-n", "RUN", "--gpus", "0,", "--data_root", "IMAGES"]
BEAR = [
    "--init_word", "bear",
    "--placeholder_string", "a brown @ on a rolling * at times square",
    "--presudo_words", "a,brown,on,rolling,at,times,square,@,*",
    "--attn_words", "brown,rolling,@,*", "--presudo_words_softmax", "@,*",
    "--presudo_words_infonce", "@,*", "--infonce_temperature", "0.2",
    "--infonce_scale", "0.0005", "--adj_aug_infonce", "brown,rolling",
]  # fmt: skip
COMMANDS = {
    "textual inversion": [*START, *RUN, "--init_word", "toy"],
    "all": [*START, *RUN, "--init_word", "ball", "--placeholder_string", "green * and orange @",
            "--presudo_words", "green,*,and,orange,@"],
    "diverse": [*START, *RUN, "--placeholder_string", "green * RELATE orange @",
                "--presudo_words", "*,@,on,under,next,front"],
    "contrast": [*START, *RUN, *BEAR, "--attn_mask_type", "skip"],
    "mask": [*START, *RUN, *BEAR],
}  # fmt: skip


def _actions() -> list[argparse.Action]:
    return build_parser()._actions


def test_the_flags_are_frozen():
    flags = {flag for action in _actions() for flag in action.option_strings}
    assert sorted(RELEASED - flags) == [], "people use these"
    assert sorted(flags - RELEASED - OURS) == [], "new: list them in this test and the documents"
    assert sorted(OURS - flags) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_released_commands_parse(name):
    known, unknown = build_parser().parse_known_args(COMMANDS[name])
    assert unknown == []
    assert (known.train, known.name, known.data_root) == (True, "RUN", "IMAGES")


def test_both_spellings_are_one_flag():
    for right, released in [
        ("--pseudo_words", "--presudo_words"),
        ("--pseudo_words_softmax", "--presudo_words_softmax"),
        ("--pseudo_words_infonce", "--presudo_words_infonce"),
    ]:
        one = build_parser().parse_args([right, "*,@"])
        assert one == build_parser().parse_args([released, "*,@"])
        assert ["*", "@"] in vars(one).values()


def test_trainer_arguments_and_overrides_are_left_for_later():
    arguments = [*COMMANDS["all"], "--max_steps", "100", "model.params.seed=1"]
    _, unknown = build_parser().parse_known_args(arguments)
    assert unknown == ["--max_steps", "100", "model.params.seed=1"]


def test_every_flag_says_what_it_does():
    silent = [a.option_strings for a in _actions() if not a.help]
    assert silent == []
