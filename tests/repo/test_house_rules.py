"""Rules of the house that a linter does not know: security defaults, and nothing that belongs to one machine."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py")) + sorted((ROOT / "scripts").rglob("*.py"))
BANNED_MODULES = {"pickle", "dill", "marshal", "shelve", "cloudpickle"}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name and isinstance(item.value, ast.Constant):
            return item.value.value
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_keeps_the_security_rules(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))

    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & BANNED_MODULES
    for call in calls(tree):
        name = ast.unparse(call.func)
        assert keyword(call, "shell") is not True, f"line {call.lineno}: shell=True"
        assert keyword(call, "trust_remote_code") is not True, f"line {call.lineno}: trust_remote_code=True"
        assert name not in {"os.system", "os.popen", "eval", "exec"}, f"line {call.lineno}: {name}"
        assert name != "yaml.load", f"line {call.lineno}: yaml.safe_load reads configs"
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, f"line {call.lineno}: torch.load without weights_only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_file_reads_the_environment(path: Path) -> None:
    if path.name == "env.py":
        return

    text = path.read_text(encoding="utf-8")

    assert not re.search(r"os\.(environ|getenv)", text), "extras/env.py is the only reader of os.environ"


def test_every_trainer_subclass_stands_in_one_file() -> None:
    files = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Trainer") for base in node.bases)
    }

    assert files <= {"src/llamafactory/train/trainer.py"}
