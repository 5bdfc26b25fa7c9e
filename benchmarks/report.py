"""Put the figures of benchmarks into docs/performance.md.

    python -m benchmarks.report [RESULTS.json ...]

Without files, all of benchmarks/results. In the place ``NAME`` of the document (between the marks
``<!-- begin NAME -->`` and ``<!-- end NAME -->``) come the tables of ``NAME.json``, with what they
were measured on.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, shown
from ldm.evaluation.pages import filled, places
from ldm.inference import ROOT

DOCUMENT = ROOT / "docs" / "performance.md"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table of Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    heads = [column.replace("_", " ") for column in columns]
    lines = [heads, ["---" if column == "name" else "---:" for column in columns]]
    lines += [[shown(row.get(column)) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(result: Mapping[str, Any]) -> str:
    """What a result says: machine, options, tables."""
    machine, options = result["machine"], result["options"]
    threads = f"{machine['threads']} threads, " if options["device"] == "cpu" else ""
    clock = ", seconds of the processor" if options["clock"] == "cpu" else ""
    said = [
        f"\n{machine['device']}, {threads}torch {machine['torch']}, `{' '.join(options['config'])}`"
        f"{clock}.\n"
    ]
    for title, rows in result["tables"].items():
        said.append(f"\n**{title[:1].upper()}{title[1:]}**\n\n{markdown(rows)}")
    return "".join(said) + "\n"


def main() -> int:
    """Read the results and rewrite the document."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("results", nargs="*", type=Path, metavar="JSON")
    options.add_argument("--document", type=Path, default=DOCUMENT)
    chosen = options.parse_args()
    files = chosen.results or sorted(RESULTS.glob("*.json"))
    results = {file.stem: json.loads(file.read_text()) for file in files}
    text = chosen.document.read_text()
    known = {name: section(results[name]) for name in places(text) if name in results}
    chosen.document.write_text(filled(text, known))
    print(f"{chosen.document}: filled in {', '.join(known) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
