"""Write the generated pages: arguments.md, tuning.md and support.md in docs/, and the results in docs/performance.md.

With --check, only say which of them is stale.
"""

import json
import re
import sys
from pathlib import Path

from llamafactory.bench.report import markdown
from llamafactory.hparams.reference import render_reference
from llamafactory.hparams.support_page import render_support
from llamafactory.hparams.tuning_page import render_tuning


ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = ROOT / "docs" / "arguments.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
TUNING = ROOT / "docs" / "tuning.md"
SUPPORT = ROOT / "docs" / "support.md"
RESULTS = re.compile(r"(<!-- results: (?P<file>\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main(args: list[str]) -> int:
    """Return 0, or 1 when --check finds a page stale."""
    pages = {
        ARGUMENTS: render_reference(),
        TUNING: render_tuning(),
        SUPPORT: render_support(),
        PERFORMANCE: render_performance(PERFORMANCE.read_text(encoding="utf-8")),
    }
    stale = [page for page, text in pages.items() if not page.is_file() or page.read_text(encoding="utf-8") != text]
    for page in stale:
        if "--check" in args:
            print(f"{page.name} is stale; run `python scripts/make_docs.py`.", file=sys.stderr)
        else:
            page.write_text(pages[page], encoding="utf-8")
    return 1 if stale and "--check" in args else 0


def render_performance(page: str) -> str:
    """Put the tables of every result file that the page names between its two marks."""

    def tables(match: re.Match[str]) -> str:
        path = ROOT / match["file"]
        text = markdown(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else "Not measured yet."
        return f"{match[1]}\n{text.strip()}\n\n{match[3]}"

    return RESULTS.sub(tables, page)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
