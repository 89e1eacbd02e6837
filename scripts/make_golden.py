"""Write tests/data/golden again; with --check, only say what is stale; with template names, show their dialogues."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data"))

from golden_cases import golden_cases, golden_files


def main(args: list[str]) -> int:
    """Return 0, or 1 when --check finds a file stale."""
    names = [arg for arg in args if not arg.startswith("--")]
    for name in names:
        for key, case in golden_cases(name).items():
            print(f"## {name}, {key}: {case.hash}\n{case.text}\n")
    if names:
        return 0

    stale = [
        (path, text) for path, text in golden_files() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        if "--check" in args:
            print(
                f"{path.name} is stale; look at the change and run `python scripts/make_golden.py`.", file=sys.stderr
            )
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in args else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
