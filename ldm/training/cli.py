"""The command line of ``main.py``: the flags people already have, spelt right as well."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ldm.errors import UserError

#: Correct spelling of each flag -> the released spelling, both accepted.
MCPL_WORD_LISTS = {
    "pseudo_words": ("--pseudo_words", "--presudo_words"),
    "attn_words": ("--attn_words",),
    "softmax_words": ("--pseudo_words_softmax", "--presudo_words_softmax"),
    "contrast_words": ("--pseudo_words_infonce", "--presudo_words_infonce"),
    "bound_adjectives": ("--adj_aug_infonce",),
}

#: Where runs go unless the command line says.
LOGS = "logs"
#: A configuration override: a dotted name, an equals sign, a value.
OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)+=")
#: One of a name without dots: only where nothing else is waited for, as such text may be a value.
PLAIN_OVERRIDE = re.compile(r"[A-Za-z_]\w*=")
WORD_LIST_HELP = {
    "pseudo_words": "words of the sentence to learn",
    "attn_words": "words whose attention makes the mask (AttnMask)",
    "softmax_words": "words of the released masks' second softmax (reference_quirks only)",
    "contrast_words": "words told apart by PromptCL",
    "bound_adjectives": "adjectives bound to the words after them (Bind adj.)",
}


def flag(text: str) -> bool:
    """A boolean written as people write it on a command line."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def word_list(text: str) -> list[str]:
    """Comma-separated words; an empty text is no word."""
    return [word.strip() for word in text.split(",") if word.strip()]


class _Roots(argparse.Action):
    """Folders of images, one after the other or separated by commas: `data_roots`; `data_root` is
    the only one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Take the folders apart."""
        roots = [
            root
            for value in values
            for root in ([value] if Path(value).exists() or "=" in value else word_list(value))
        ]
        _keep_roots(namespace, roots)


def _keep_roots(flags: argparse.Namespace, roots: list[str]) -> None:
    flags.data_roots = roots
    flags.data_root = roots[0] if len(roots) == 1 else None


@dataclass(frozen=True)
class Options:
    """A parsed command line: the known flags, trainer arguments and configuration overrides."""

    flags: argparse.Namespace
    trainer: dict[str, str]
    overrides: list[str]


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message, like those about any other input."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with `message`."""
        raise UserError(f"{message}; see --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``main.py``."""
    parser = Parser(
        prog="main.py",
        allow_abbrev=False,
        description="Learn new words for a frozen text-to-image model, or train a model.",
        epilog="Arguments such as model.params.seed=1 override the configuration; "
        "--max_steps 100 and other arguments of Lightning's Trainer are passed on.",
    )
    parser.set_defaults(data_roots=[])
    _run_arguments(parser.add_argument_group("run"))
    _concept_arguments(parser.add_argument_group("words to learn"))
    _released_arguments(parser.add_argument_group("words to learn, as in the released MCPL code"))
    return parser


def _run_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-b", "--base", nargs="*", action="extend", default=[], metavar="YAML",
        help="configuration files, merged left to right",
    )  # fmt: skip
    group.add_argument(
        "-t", "--train", type=flag, nargs="?", const=True, default=None,
        help="train (the default when the configuration has data)",
    )  # fmt: skip
    group.add_argument("--no-test", type=flag, nargs="?", const=True, default=False,
                       help="skip the test loop after training")  # fmt: skip
    group.add_argument("-n", "--name", default="", help="name of the run, part of its folder")
    group.add_argument("-f", "--postfix", default="", help="appended to the folder's name")
    group.add_argument("-l", "--logdir", default=None,
                       help="where the runs' folders are made (default: logs)")  # fmt: skip
    group.add_argument("-p", "--project", default=None, help="same as --logdir")
    group.add_argument("-r", "--resume", default="", metavar="RUN",
                       help="continue a run: its folder or a checkpoint in it")  # fmt: skip
    group.add_argument("--actual_resume", default="", metavar="CKPT",
                       help="weights of the text-to-image model")  # fmt: skip
    group.add_argument("-s", "--seed", type=int, default=None, help="seed of everything random")
    group.add_argument("-d", "--debug", type=flag, nargs="?", const=True, default=False,
                       help="full traceback on errors")  # fmt: skip
    group.add_argument("--scale_lr", type=flag, nargs="?", const=True, default=None,
                       help="learning rate = base x devices x batch x accumulation")  # fmt: skip
    group.add_argument("--datadir_in_name", type=flag, nargs="?", const=True, default=True,
                       help="put the data folder's name into the run's name")  # fmt: skip
    group.add_argument("--gpus", default=None, help="GPU numbers such as '0,'")
    group.add_argument("--batch_size", type=int, default=None, help="images a step")


def _concept_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data_root", default=None, action=_Roots, nargs="+", metavar="FOLDER",
        help="folder of images; several are as many runs, learned together",
    )  # fmt: skip
    group.add_argument("--repeats", type=int, default=1, metavar="N",
                       help="learn N times with the seeds from --seed on, together")  # fmt: skip
    group.add_argument(
        "--sentence", default=None,
        help='annotated sentence: "a [brown] <teddy:bear> on a [rolling] <board:skateboard>"',
    )  # fmt: skip
    group.add_argument("--strategy", choices=("one", "all"), default=None,
                       help="learn the marked words, or every word of the sentence "
                       "(the Trainer's own: lightning.trainer.strategy=ddp)")  # fmt: skip
    group.add_argument("--init_word", default=None,
                       help="word that placeholders such as * start from; or, separated by commas, "
                       "one for each")  # fmt: skip
    group.add_argument("--embedding_manager_ckpt", default="",
                       help="learned words to continue from")  # fmt: skip


def _released_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--placeholder_string", default=None,
                       help="the sentence, e.g. 'green * and orange @'")  # fmt: skip
    for name, spellings in MCPL_WORD_LISTS.items():
        group.add_argument(*spellings, dest=name, type=word_list, default=None, metavar="WORDS",
                           help=f"{WORD_LIST_HELP[name]}, separated by commas")  # fmt: skip
    group.add_argument("--infonce_temperature", type=float, default=None, metavar="TAU",
                       help="temperature of PromptCL")  # fmt: skip
    group.add_argument("--infonce_scale", type=float, default=None, metavar="GAMMA",
                       help="weight of PromptCL")  # fmt: skip
    group.add_argument("--attn_mask_type", choices=("hard", "soft", "skip"), default=None,
                       help="AttnMask: a hard or a soft mask, or none")  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Parse a command line.

    Raises:
        UserError: for an argument that is neither a flag, a trainer argument nor an override.
    """
    parser = build_parser()
    arguments, overrides = _without_overrides(
        parser, sys.argv[1:] if arguments is None else arguments
    )
    flags, unknown = parser.parse_known_args(arguments)
    given_folder = flags.logdir if flags.project is None else flags.project
    flags.logdir_given, flags.logdir = given_folder is not None, given_folder or LOGS
    # "--base a.yaml seed=1": what has an equals sign is no file.
    given = [*flags.base, *flags.data_roots]
    overrides += [entry for entry in given if "=" in entry and not Path(entry).exists()]
    flags.base = [entry for entry in flags.base if entry not in overrides]
    _keep_roots(flags, [root for root in flags.data_roots if root not in overrides])
    trainer = {}
    known = trainer_arguments() if unknown else frozenset()
    remaining = list(unknown)
    while remaining:
        argument = remaining.pop(0)
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if name not in known:
                raise UserError(f"unknown argument {argument!r}{_nearest(name, known)}")
            switch = (
                not remaining
                or remaining[0].startswith("--")
                or PLAIN_OVERRIDE.match(remaining[0]) is not None
            )
            trainer[name] = value if equals else "true" if switch else remaining.pop(0)
        elif "=" in argument and not argument.startswith("-"):
            overrides.append(argument)
        else:
            raise UserError(
                f"unknown argument {argument!r}: expected a flag (see --help), an argument of "
                "Lightning's Trainer such as --max_steps 100, or an override such as a.b=c"
            )
    return Options(flags, trainer, overrides)


def _without_overrides(
    parser: argparse.ArgumentParser, given: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Other arguments, and the overrides that a flag with an optional value would swallow."""
    switches = {name for name, action in parser._option_string_actions.items()
                if action.nargs == "?"}  # fmt: skip
    arguments: list[str] = []
    overrides: list[str] = []
    for argument in given:
        plain = bool(arguments) and arguments[-1] in switches and PLAIN_OVERRIDE.match(argument)
        (overrides if plain or OVERRIDE.match(argument) else arguments).append(argument)
    return arguments, overrides


def trainer_arguments() -> frozenset[str]:
    """The names that Lightning's Trainer accepts."""
    import inspect

    from pytorch_lightning import Trainer

    return frozenset(inspect.signature(Trainer.__init__).parameters) - {"self"}


def _nearest(name: str, known: frozenset[str]) -> str:
    import difflib

    flags = [option[2:] for option in build_parser()._option_string_actions if option[:2] == "--"]
    close = difflib.get_close_matches(name, [*flags, *known], n=1)
    return f"; did you mean --{close[0]}?" if close else "; see --help"
