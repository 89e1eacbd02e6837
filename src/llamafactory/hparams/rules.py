"""All rules between keys. Every one is a small generator of violations; all of them run, and all are reported."""

from collections.abc import Callable, Iterator

from . import rules_booster, rules_method, rules_model, rules_optimizer, rules_run, rules_tuning
from .view import UnknowableError, View, Violation


Rule = Callable[[View], Iterator[Violation]]

RULES: tuple[Rule, ...] = (
    *rules_run.RULES,
    *rules_model.RULES,
    *rules_method.RULES,
    *rules_tuning.RULES,
    *rules_optimizer.RULES,
    *rules_booster.RULES,
)


def check_rules(view: View) -> list[Violation]:
    """Run every rule that can be judged with what is known, and return all violations."""
    violations: list[Violation] = []
    for rule in RULES:
        try:
            violations.extend(list(rule(view)))
        except UnknowableError:
            continue
    return violations
