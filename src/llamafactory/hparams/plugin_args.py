"""Keys that bring a user's own code into a run (train/plugins.py)."""

from dataclasses import dataclass

from .kinds import Arguments, Names


@dataclass(frozen=True, kw_only=True)
class PluginArguments(Arguments):
    """Plug-ins."""

    plugins: Names = ()
    """Python files (or modules) that register stages, objectives, metrics, rewards or callbacks of your own."""
    objective: str | None = None
    """Loss that takes the place of the stage's own; a name that a plug-in registers."""
    metrics: Names = ()
    """Further metrics of predictions; names that a plug-in registers."""
