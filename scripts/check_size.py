"""Check the size budgets of pyproject.toml: lines per module and per function under src/.

A file that must be longer is named under [tool.size_budget.exceptions] with its limit and the reason.
"""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent


def violations(path: Path, max_module: int, max_function: int) -> Iterator[str]:
    """Yield one sentence for each budget that the file breaks."""
    name = path.relative_to(ROOT)
    text = path.read_text(encoding="utf-8")
    num_lines = text.count("\n")
    if num_lines > max_module:
        yield f"{name}: {num_lines} lines, the budget is {max_module}"

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > max_function:
                yield f"{name}:{node.lineno}: {node.name} has {num_lines} lines, the budget is {max_function}"


def main() -> int:
    budget = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["size_budget"]
    exceptions = budget["exceptions"]
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        if "third_party" in path.parts:
            continue

        exception = exceptions.get(str(path.relative_to(ROOT)), {})
        max_module = exception.get("lines", budget["max_module_lines"])
        max_function = exception.get("function_lines", budget["max_function_lines"])
        found.extend(violations(path, max_module, max_function))

    found.extend(
        f"{name}: an exception needs a reason" for name, row in exceptions.items() if not row.get("reason", "").strip()
    )
    print("\n".join(found) if found else "Size budgets kept.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
