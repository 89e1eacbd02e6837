"""Write docs/arguments.md from the argument classes; with --check, only say whether it is stale."""

import sys
from pathlib import Path

from llamafactory.hparams.reference import render_reference


PAGE = Path(__file__).resolve().parents[1] / "docs" / "arguments.md"


def main(args: list[str]) -> int:
    """Return 0, or 1 when --check finds the page stale."""
    text = render_reference()
    if "--check" in args:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE.name} is stale; run `python scripts/make_docs.py`.", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
