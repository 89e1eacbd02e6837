"""Console scripts live here because one of them depends on the environment at install time."""

import os

from setuptools import setup


def get_console_scripts() -> list[str]:
    """Return the entry points: `llamafactory-cli`, and `lmf` unless ENABLE_SHORT_CONSOLE is off."""
    scripts = ["llamafactory-cli = llamafactory.cli:main"]
    if os.environ.get("ENABLE_SHORT_CONSOLE", "1").strip().lower() in {"true", "yes", "on", "y", "t", "1"}:
        scripts.append("lmf = llamafactory.cli:main")

    return scripts


setup(entry_points={"console_scripts": get_console_scripts()})
