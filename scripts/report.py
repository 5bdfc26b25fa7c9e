"""Make the report of a run again, from what lies in its folder.

python scripts/report.py logs/RUN
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from ldm.evaluation.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``report.html`` in each folder; the exit code is 1 when one holds nothing to report."""
    parser = argparse.ArgumentParser(description="Make the report of a run again.")
    parser.add_argument(
        "folders", nargs="+", metavar="RUN", help="folder of a run: logs/<time>_..."
    )
    code, console, errors = 0, Console(), Console(stderr=True)
    for folder in parser.parse_args(arguments).folders:
        try:
            path = write_report(folder)
            if path is None:
                raise ValueError(f"{folder} holds no run with learned words")
        except (ValueError, OSError) as error:
            errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            code = 1
            continue
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
