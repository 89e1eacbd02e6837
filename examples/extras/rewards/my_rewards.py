"""Rewards for `reward_funcs`: plain functions that judge answers.

Each takes what it names of these lists: `prompts`, `completions`, and `answer`, the answers of the dataset. It returns
one number for each answer, or None where it does not apply.
"""

import re


def brief(completions: list[str]) -> list[float]:
    """Up to 1 for an answer that is short, and 0 from 400 characters on."""
    return [max(0.0, 1 - len(text) / 400) for text in completions]


def bullet_points(completions: list[str]) -> list[float]:
    """The share of lines that begin with a dash."""
    lines = [[line for line in text.splitlines() if line.strip()] for text in completions]
    return [sum(line.lstrip().startswith("- ") for line in part) / max(len(part), 1) for part in lines]


def same_number(completions: list[str], answer: list[str]) -> list[float | None]:
    """1 where the last number of the answer is that of the dataset; does not apply where that has none."""
    wanted, given = ([re.findall(r"-?\d+(?:\.\d+)?", text) for text in texts] for texts in (answer, completions))
    return [
        None if not right else float(bool(found) and float(found[-1]) == float(right[-1]))
        for right, found in zip(wanted, given, strict=True)
    ]
