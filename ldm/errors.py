"""Errors that a person can mend: shown as one message, without a traceback."""

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

#: How torch says that memory is used up, on a GPU and on a CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class UserError(ValueError):
    """Something about the input is wrong; the message says what, and what to do."""


def exit_code(work: Callable[[], object]) -> int:
    """Carry out the `work` of a script: 0, 1 with a mistake as one message, 130 if interrupted.

    Errors that no input explains keep their traceback.
    """
    try:
        work()
    except KeyboardInterrupt:
        logger.error("interrupted; what was written stays")
        return 130
    except (ValueError, OSError, ImportError) as error:
        logger.error("error: %s", error)
        return 1
    except (RuntimeError, MemoryError) as error:
        said = str(error)
        if isinstance(error, RuntimeError) and not any(sign in said for sign in OUT_OF_MEMORY):
            raise
        logger.error(
            "error: there is not enough memory (%s): fewer or smaller pictures at once need less, "
            "and so does --precision autocast where a script has it",
            said.split("\n", maxsplit=1)[0],
        )
        return 1
    return 0
