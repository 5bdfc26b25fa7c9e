"""Say what files of learned words hold.

python scripts/show_embeddings.py logs/RUN/checkpoints/embeddings.pt
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm.checkpoint import read_embeddings
from ldm.inference import CONFIG_OF_WIDTH
from ldm.weight_files import safetensors_metadata

COLUMNS = ("word", "vectors", "width", "norm", "starts from", "fits")


def describe(path: str | Path) -> tuple[str, list[tuple[str, ...]]]:
    """The layout of a file of learned words, and a row of `COLUMNS` for each word."""
    found = read_embeddings(path)
    starts = {}
    if Path(path).suffix == ".safetensors":
        starts = json.loads(safetensors_metadata(path).get("starts_from", "{}"))
    rows: list[tuple[str, ...]] = []
    for word, vectors in found.vectors.items():
        count, width = vectors.shape
        norm = f"{vectors.norm(dim=-1).mean():.3f}"
        fits = CONFIG_OF_WIDTH.get(width, "no known model")
        rows.append((word, str(count), str(width), norm, starts.get(word, "-"), fits))
    return found.source_format, rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each file; the exit code is 1 when one cannot be read."""
    parser = argparse.ArgumentParser(description="Say what files of learned words hold.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    code, console, errors = 0, Console(), Console(stderr=True)
    for path in parser.parse_args(arguments).files:
        try:
            layout, rows = describe(path)
        except (ValueError, OSError) as error:
            errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            code = 1
            continue
        table = Table(title=Text(f"{path} ({layout})"), title_justify="left")
        for column in COLUMNS:
            table.add_column(column, overflow="fold")
        for row in rows:
            # As plain text: a word may look like the markup of the table's library.
            table.add_row(*map(Text, row))
        console.print(table)
    return code


if __name__ == "__main__":
    sys.exit(main())
