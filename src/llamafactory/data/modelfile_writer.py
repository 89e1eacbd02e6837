"""A slot template written as an Ollama Modelfile: what Ollama renders is then the text the model was trained on.

Ollama gives the system prompt apart (`.System`), keeps it in `.Messages` too, and hands over thoughts it has parsed
as `.Thinking`. Tools are not part of the file.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..extras.errors import UserError
from .formatter import Piece, Place
from .special_tokens import adds_bos


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .slot_template import SlotTemplate

NUM_CTX = 4096
CONTENT = "{{ $m.Content }}"
BOS = Piece("bos_token", "special")


def write_modelfile(template: "SlotTemplate", tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a Modelfile that stands in the model's folder."""
    writer = GoWriter(template, tokenizer)
    text = writer.write()
    if '"""' in text or '"""' in template.default_system:
        raise UserError(f'A Modelfile cannot hold the template {template.name!r}: three quotes (""") are in its text.')
    lines = ["FROM .", f'TEMPLATE """{text}"""']
    lines += [f'SYSTEM """{template.default_system}"""'] if template.default_system else []
    stops = tokenizer.convert_ids_to_tokens(template.get_stop_token_ids(tokenizer))
    lines.append("\n".join(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops))
    lines[-1] += f"\nPARAMETER num_ctx {NUM_CTX}"
    return "\n\n".join(lines) + "\n"


class GoWriter:
    """Writes the parts of one template as Go template text."""

    def __init__(self, template: "SlotTemplate", tokenizer: "PreTrainedTokenizerBase") -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.leaves_bos = adds_bos(tokenizer)  # the converted model puts it in front by itself

    def write(self) -> str:
        """Return the whole template."""
        template = self.template
        prefix = template.prefix.parts
        opening = self.text(template.opening)
        place = template.observation.parts.index(Place("content"))
        before, after = template.observation.parts[:place], template.observation.parts[place + 1 :]
        joint = self.text([Piece(template.observation_join)])
        return "".join(
            [
                self.find_question(),
                '{{ $previous := "" }}',
                self.text(prefix[1:] if self.leaves_bos and prefix[:1] == (BOS,) else prefix),
                "" if template.system_in_user else f"{{{{ if .System }}}}{self.system('.System')}{{{{ end }}}}",
                "{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
                f'{{{{ if and (eq $previous "tool") (ne $m.Role "tool") }}}}{self.text(after)}{{{{ end }}}}',
                f'{{{{ if eq $m.Role "user" }}}}{self.user()}',
                '{{ else if eq $m.Role "tool" }}{{ if eq $previous "tool" }}',
                f"{joint}{{{{ else }}}}{self.text(before)}{{{{ end }}}}{CONTENT}",
                f'{{{{ else if eq $m.Role "assistant" }}}}{self.text(template.generation.parts)}{self.answer()}',
                '{{ end }}{{ if ne $m.Role "system" }}{{ $previous = $m.Role }}{{ end }}',
                f'{{{{ if and $last (eq $m.Role "tool") }}}}{self.text(after)}{{{{ end }}}}',
                f'{{{{ if and $last (ne $m.Role "assistant") }}}}{opening}{{{{ end }}}}',
                "{{ end }}",
            ]
        )

    def find_question(self) -> str:
        """Find the last question: thoughts before it are left out."""
        if self.template.thinking is None:
            return ""
        return (
            '{{ $question := -1 }}{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $question = $i }}'
            "{{ end }}{{ end }}"
        )

    def system(self, variable: str) -> str:
        """Write the system prompt."""
        return self.text(self.template.system_slots.parts, f"{{{{ {variable} }}}}")

    def user(self) -> str:
        """Write a user turn; the first one may take the system prompt in."""
        if not self.template.system_in_user:
            return self.text(self.template.user.parts)
        lead = f'{{{{ if and (eq $previous "") $.System }}}}{self.system("$.System")}{{{{ end }}}}'
        parts = self.template.user.parts
        if self.leaves_bos and parts[:1] == (BOS,):
            bos = f'{{{{ if ne $previous "" }}}}{self.text([BOS])}{{{{ end }}}}'
            return bos + self.text(parts[1:], lead + CONTENT)
        return self.text(parts, lead + CONTENT)

    def answer(self) -> str:
        """Write an answer with its thought."""
        template, lead = self.template, self.template.answer_lead
        thinking = template.thinking
        if thinking is None:
            return self.text(template.assistant.parts)
        start, end = (self.text([Piece(word)]) for word in thinking.words)
        is_active = "true" if template.preserve_thinking else "(gt $i $question)"
        has_thought = "false" if template.enable_thinking is False else f"and $m.Thinking {is_active}"
        is_filled = {"last": "$last", "active": is_active, "every": "true"}[thinking.fill]
        thought = (
            f"{{{{ if {has_thought} }}}}{start}{{{{ $m.Thinking }}}}{end}"
            f"{{{{ else if {is_filled} }}}}{self.text([Piece(thinking.empty_thought)])}{{{{ end }}}}"
        )
        return self.text(lead) + thought + self.text(template.assistant.parts[len(lead) :])

    def text(self, parts: Sequence[Piece | Place], content: str = CONTENT) -> str:
        """Write literal text and places."""
        written: list[str] = []
        for part in parts:
            if isinstance(part, Place):
                if part.name != "content":
                    raise UserError(f"A Modelfile cannot count turns, as the template {self.template.name!r} does.")
                written.append(content)
                continue
            text = (getattr(self.tokenizer, part.text) or "") if part.kind == "special" else part.text
            is_braced = "{{" in text or text.endswith("{")  # Go would take it for an action
            written.append(f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if is_braced else text)
        return "".join(written)
