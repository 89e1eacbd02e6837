"""Tool-call syntaxes: how each family of models is shown its tools, writes calls, and is read back."""

from .calls import FunctionCall, Tool, parse_calls, parse_tools
from .formats import TOOL_FORMATS
from .tool_format import Answer, CallTurn, ToolFormat


__all__ = ["TOOL_FORMATS", "Answer", "CallTurn", "FunctionCall", "Tool", "ToolFormat", "parse_calls", "parse_tools"]
