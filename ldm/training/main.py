"""The entry point of ``main.py``: parse, run, turn errors into one message each."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence

from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError
from ldm.training.cli import Options, parse

logger = logging.getLogger(__name__)


def quiet() -> None:
    """One line a message, and no warnings that a user of this program can do nothing about."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("pytorch_lightning", "lightning", "fsspec", "PIL", "matplotlib", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        logging.getLogger().setLevel(logging.WARNING)  # the first process says it for all
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(options: Options) -> None:
    """Carry out a parsed command line."""
    from ldm.training.config import load_config
    from ldm.training.resume import resumed_options

    options = resumed_options(options)
    config = load_config(options)
    if options.flags.train is False or config.get("data") is None:
        raise UserError(
            "nothing to do: this configuration has no data, or --train false was given. To sample, "
            "use scripts/txt2img.py"
        )
    if config.get("runs"):
        from ldm.training.packed import train_packed as train
    else:
        from ldm.training.run import train

    folder = train(config, options)
    logger.info("done: %s", folder.root)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``main.py``; the exit code is 0 on success, 1 on an error, 130 when interrupted."""
    quiet()
    debug = False
    try:
        options = parse(arguments)
        debug = options.flags.debug
        run(options)
    except KeyboardInterrupt as stop:
        logger.error("interrupted%s", f"; {stop}" if str(stop) else "")
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, OmegaConfBaseException) as error:
        if debug:
            raise
        logger.error("error: %s", error)
        if isinstance(error, RuntimeError):
            logger.error("(run again with --debug for the full traceback)")
        return 1
    return 0
