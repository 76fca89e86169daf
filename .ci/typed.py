"""Fail unless pyright knows the types of so much of the public interface: python .ci/typed.py FILE

FILE is what `pyright --verifytypes entropatch --ignoreexternal --outputjson` printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAST = 0.99


def main(file: str) -> str | None:
    """What is wrong; None if nothing is."""
    found = json.loads(Path(file).read_text(encoding="utf-8"))["typeCompleteness"]
    unknown = [one for one in found["symbols"] if one["isExported"] and not one["isTypeKnown"]]
    for symbol in unknown:
        said = [line["message"].splitlines()[0] for line in symbol["diagnostics"][:1]]
        print(symbol["name"], *said, file=sys.stderr)  # noqa: T201
    score = found["completenessScore"]
    print(f"types known: {100 * score:.1f} %, {len(unknown)} symbols unknown", file=sys.stderr)  # noqa: T201
    return None if score >= LEAST else f"at least {100 * LEAST:.0f} % of the public types must be known."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
