"""Runs the command `data` in this process, and makes the rows it looks at."""

import json
from collections.abc import Callable
from typing import Any


Run = Callable[..., "Result"]


class Result:
    """What a command printed and how it ended."""

    def __init__(self, code: object, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def finding(self, code: str) -> dict[str, Any]:
        return next(finding for finding in self.json["findings"] if finding["code"] == code)

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.json["findings"]}


def alpaca(instruction: str, output: str, **more: str) -> dict[str, str]:
    return {"instruction": instruction, "input": "", "output": output, **more}


def sharegpt(*texts: str, first: str = "human") -> dict[str, Any]:
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return {"conversations": [{"from": speakers[index % 2], "value": text} for index, text in enumerate(texts)]}


GOOD = [alpaca("Say one.", "one"), alpaca("Say two.", "two"), alpaca("Say three.", "three")]
