"""The model's own Jinja: the same ids as apply_chat_template, with exact bounds of every answer."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.data.conversation import as_conversation
from llamafactory.data.encoding import join
from llamafactory.data.jinja_template import JinjaTemplate
from llamafactory.extras.errors import UserError
from llamafactory.hparams import DataArguments


TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
# As Qwen 3: an empty thought stands in front of the last answer only, and thoughts of earlier answers are dropped.
THINKING = (
    "{%- for m in messages %}{%- set content = m['content'] %}{%- if m['role'] == 'assistant' %}"
    "{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set content = content.split('</think>')[-1].lstrip() %}{%- else %}{%- set thought = '' %}{%- endif %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if loop.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- content + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>' + m['role'] + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
# As Phi 3: an end-of-text token closes a text that is no prompt.
CLOSING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{{ m['content'] | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
# As Mistral: no header in front of an answer but a space.
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system prompts here') }}"
    "{% else %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "closing": CLOSING, "spaced": SPACED}
TURNS = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am fine!"},
    {"role": "user", "content": "And they?"},
    {"role": "assistant", "content": "Well."},
]


def fit(tokenizer: Any, name: str, **options: Any) -> Any:
    tokenizer.chat_template = TEMPLATES[name]
    return get_template_and_fix_tokenizer(tokenizer, DataArguments(**options))


def turns_of(template: Any, tokenizer: Any, messages: list[dict[str, str]]) -> list[Any]:
    (encoded,) = template.encode_conversations(tokenizer, [as_conversation(messages)])
    return encoded.turns


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("num_turns", [2, 4])
def test_n17_ids_are_those_of_apply_chat_template(
    fresh_tokenizer: Callable[..., Any], name: str, num_turns: int
) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, name)

    pairs = template.encode_multiturn(tokenizer, TURNS[:num_turns])
    prompt = template.encode_prompt(tokenizer, TURNS[: num_turns - 1])

    assert isinstance(template, JinjaTemplate)
    assert (
        join([ids for pair in pairs for ids in pair]) == tokenizer.apply_chat_template(TURNS[:num_turns])["input_ids"]
    )
    expected = tokenizer.apply_chat_template(TURNS[: num_turns - 1], add_generation_prompt=True)["input_ids"]
    assert prompt == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_n19_an_answer_is_its_text_and_its_end_token(fresh_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, name)

    turns = turns_of(template, tokenizer, TURNS)

    lead = {"thinking": "<think>\n\n</think>\n\n", "spaced": " "}.get(name, "")
    first = " I am fine!<|im_end|>" if name == "spaced" else "I am fine!<|im_end|>"
    assert [tokenizer.decode(turn.target) for turn in turns] == [first, f"{lead}Well.<|im_end|>"]
    assert template.get_stop_token_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_n20_thoughts_of_earlier_answers_are_dropped_as_the_template_does(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "thinking")
    thoughtful = [dict(turn) for turn in TURNS]
    thoughtful[1]["content"] = "<think>\nOh.\n</think>\n\nI am fine!"
    thoughtful[3]["content"] = "<think>\nHm.\n</think>\n\nWell."

    turns = turns_of(template, tokenizer, thoughtful)

    assert [tokenizer.decode(turn.target) for turn in turns] == [
        "I am fine!<|im_end|>",
        "<think>\nHm.\n</think>\n\nWell.<|im_end|>",
    ]


def test_n20_an_empty_thought_in_the_prompt_is_not_learned(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "thinking", enable_thinking=False)

    turns = turns_of(template, tokenizer, TURNS)

    assert tokenizer.decode(turns[1].target) == "Well.<|im_end|>"
    assert tokenizer.decode(turns[1].source).endswith("assistant\n<think>\n\n</think>\n\n")
    prompt = template.encode_prompt(tokenizer, TURNS[:3])
    assert join([turns[0].source, turns[0].target, turns[1].source]) == prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_n22_typed_control_tokens_stay_text(fresh_tokenizer: Callable[..., Any], name: str) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, name)
    typed = [{**turn, "content": f"a<|im_end|>{turn['content']}\ufdd0"} for turn in TURNS]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    plain, turns = turns_of(template, tokenizer, TURNS), turns_of(template, tokenizer, typed)

    for before, after in zip(plain, turns, strict=True):
        assert after.source.count(end) == before.source.count(end)
        assert after.target.count(end) == 1
        assert "a<|im_end|>" in tokenizer.decode(after.target[:-1])
        assert "\ufdd0" in tokenizer.decode(after.target[:-1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=12), min_size=4, max_size=4), name=st.sampled_from(["chatml", "thinking"]))
def test_supervised_ids_decode_to_what_the_template_makes_of_an_answer(
    fresh_tokenizer: Callable[..., Any], texts: list[str], name: str
) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, name)
    messages = [{"role": turn["role"], "content": text} for turn, text in zip(TURNS, texts, strict=True)]

    turns = turns_of(template, tokenizer, messages)

    lead = "<think>\n\n</think>\n\n" if name == "thinking" else ""
    assert [tokenizer.decode(turn.target) for turn in turns] == [
        f"{texts[1]}<|im_end|>",
        f"{lead}{texts[3]}<|im_end|>",
    ]


THOUGHT = "<think>\nOh.\n</think>\n\nok"


@pytest.mark.parametrize("enable_thinking", [None, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_that_stands_in_the_text_has_the_bounds_that_marks_find(
    fresh_tokenizer: Callable[..., Any], name: str, enable_thinking: bool | None
) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, name, enable_thinking=enable_thinking)
    contents = itertools.product(["ok", " ok"], *[["ok", "", " ok", "ok\n", THOUGHT, "o<|im_end|>k"]] * 2)
    conversations = [
        as_conversation(
            [{**turn, "content": text} for turn, text in zip(TURNS, (user, first, user, last), strict=True)]
        )
        for user, first, last in contents
    ]

    found = template.encode_conversations(tokenizer, conversations)
    by_marks = replace(template, header="").encode_conversations(tokenizer, conversations)

    assert bool(template.header) == (name in ("chatml", "thinking"))
    assert [getattr(row, "turns", repr(row)) for row in found] == [
        getattr(row, "turns", repr(row)) for row in by_marks
    ]


def test_an_answer_that_stands_in_the_text_is_rendered_once(
    fresh_tokenizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "chatml")
    calls: list[Any] = []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda *args, **kwargs: calls.append(args) or render(*args, **kwargs)
    )

    turns_of(template, tokenizer, TURNS)

    assert len(calls) == 1


def test_what_the_template_refuses_drops_the_row(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "spaced")

    with pytest.raises(UserError, match=r"cannot be put into the template 'auto': .*no system prompts here"):
        template.encode_prompt(tokenizer, TURNS[:1], system="Be kind.")


def test_tools_are_refused_by_a_template_without_a_place_for_them(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "chatml")
    call = {"role": "function", "content": '{"name": "f", "arguments": {}}'}

    with pytest.raises(UserError, match="no place for tools"):
        template.encode_prompt(tokenizer, TURNS[:1], tools='[{"name": "f"}]')
    with pytest.raises(UserError, match="no place for tool calls"):
        template.encode_multiturn(tokenizer, [TURNS[0], call])


def test_tools_and_calls_reach_a_template_that_knows_them(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
        "{% for call in m['tool_calls'] or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
        "{% endfor %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    template = get_template_and_fix_tokenizer(tokenizer, DataArguments())
    call = {"role": "function", "content": '{"name": "f", "arguments": {"a": "<|im_end|>"}}'}
    messages = [TURNS[0], call, {"role": "observation", "content": "3"}, TURNS[3]]

    pairs = template.encode_multiturn(tokenizer, messages, tools='[{"name": "f"}]')

    texts = [tokenizer.decode(ids) for pair in pairs for ids in pair]
    assert texts[0].startswith('[{"type": "function", "function": {"name": "f"}}]<|im_start|>user')
    assert texts[1:] == [
        'f({"a": "<|im_end|>"})<|im_end|>',
        "<|im_start|>tool3<|im_end|><|im_start|>assistant",
        "Well.<|im_end|>",
    ]
    assert pairs[0][1].count(tokenizer.eos_token_id) == 1


def test_a_template_whose_answers_have_no_bounds_is_refused_in_one_sentence(
    fresh_tokenizer: Callable[..., Any],
) -> None:
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"

    with pytest.raises(UserError, match=r"cannot be cut into answers exactly .*; name a template instead"):
        get_template_and_fix_tokenizer(tokenizer, DataArguments())


def test_a_template_from_a_stranger_runs_in_a_sandbox(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    tokenizer.chat_template = "{{ ''.__class__.__mro__ }}{% for m in messages %}{{ m['content'] }}{% endfor %}"

    with pytest.raises(UserError, match="unsafe"):
        get_template_and_fix_tokenizer(tokenizer, DataArguments(template="auto"))


def test_a_default_system_is_saved_with_the_template(fresh_tokenizer: Callable[..., Any]) -> None:
    tokenizer = fresh_tokenizer()
    template = fit(tokenizer, "chatml", default_system="It's\nshort.")

    prompt = template.encode_prompt(tokenizer, TURNS[:1])
    own = template.encode_prompt(tokenizer, TURNS[:1], system="Long.")

    assert tokenizer.decode(prompt).startswith("<|im_start|>system\nIt's\nshort.<|im_end|>\n<|im_start|>user")
    assert prompt == tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(own).startswith("<|im_start|>system\nLong.<|im_end|>\n<|im_start|>user")


def test_a_tool_syntax_needs_a_named_template(fresh_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="needs a named template"):
        get_template_and_fix_tokenizer(fresh_tokenizer(), DataArguments(tool_format="qwen"))
