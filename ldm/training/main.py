"""The entry point of ``main.py``: parse, run, turn errors into one message each."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ldm.training.cli import Options, parse
from ldm.training.errors import UserError

logger = logging.getLogger(__name__)


def quiet() -> None:
    """One line a message, and no warnings that a user of this program can do nothing about."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("pytorch_lightning", "lightning", "fsspec", "PIL", "matplotlib", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(options: Options) -> None:
    """Carry out a parsed command line."""
    from ldm.training.config import load_config
    from ldm.training.resume import resumed_options

    options = resumed_options(options)
    config = load_config(options)
    if options.flags.train is False or "data" not in config:
        raise UserError(
            "nothing to do: this configuration has no data, or --train false was given. To sample, "
            "use scripts/txt2img.py"
        )
    from ldm.training.run import train

    folder = train(config, options)
    logger.info("done: %s", folder.root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``main.py``; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    quiet()
    debug = "-d" in (arguments or sys.argv) or "--debug" in (arguments or sys.argv)
    try:
        run(parse(arguments))
    except KeyboardInterrupt:
        logger.error("interrupted; continue with --resume and the run's folder")
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        logger.error("error: %s", error)
        if not isinstance(error, (UserError, ValueError, OSError, ImportError)):
            logger.error("(run again with --debug for the full traceback)")
        return 1
    return 0
