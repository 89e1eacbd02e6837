"""Call tools through the API: the model asks, this script answers, the model tells.

llamafactory-cli api model_name_or_path=Qwen/Qwen3-4B template=qwen3
python scripts/api_example/test_toolcall.py
"""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from client import connect, first_model
from openai import OpenAI, OpenAIError


QUESTION = "My grades are A, A, B and C, with 3, 4, 3 and 2 hours. What is my grade point average?"
POINTS = {"A": 4, "B": 3, "C": 2, "D": 1, "F": 0}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "grade_point_average",
            "description": "Computes a grade point average.",
            "parameters": {
                "type": "object",
                "properties": {
                    "grades": {"type": "array", "items": {"type": "string", "enum": list(POINTS)}},
                    "hours": {"type": "array", "items": {"type": "number"}},
                },
                "required": ["grades", "hours"],
            },
        },
    }
]


def grade_point_average(grades: Sequence[str], hours: Sequence[float]) -> float:
    """The tool."""
    points = sum(POINTS[grade] * hour for grade, hour in zip(grades, hours, strict=True))
    return round(points / sum(hours), 2)


FUNCTIONS: dict[str, Callable[..., Any]] = {"grade_point_average": grade_point_average}


def converse(client: OpenAI, model: str, most_rounds: int = 4) -> str:
    """Ask, run the tools that are called, and return the last answer."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(most_rounds):
        answer = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0].message  # type: ignore[arg-type]
        if not answer.tool_calls:
            return answer.content or ""
        messages.append(answer.model_dump(exclude_none=True))
        for call in answer.tool_calls:
            result = run_tool(call.function.name, call.function.arguments)
            print(f"{call.function.name}({call.function.arguments}) = {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return "The model went on calling tools."


def run_tool(name: str, arguments: str) -> str:
    """Run one call; what is wrong with it is told to the model, which may do better."""
    try:
        return json.dumps(FUNCTIONS[name](**json.loads(arguments)))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def main(words: list[str]) -> int:
    if words:
        print(__doc__)
        return 0 if {"-h", "--help"} & set(words) else 2
    try:
        client = connect()
        print(converse(client, first_model(client)))
    except OpenAIError as error:
        print(f"The server says: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
