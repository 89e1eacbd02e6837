"""Every word of the page in five languages."""

import tomllib
from typing import Any

import pytest

from llamafactory.hparams.schema import list_params
from llamafactory.webui.engine import Engine
from llamafactory.webui.form import describe_field
from llamafactory.webui.interface import build_page
from llamafactory.webui.jobs.failures import KILLED, UNWATCHED
from llamafactory.webui.layout import fields_of
from llamafactory.webui.wording import (
    FOLDER,
    LANGUAGES,
    load_words,
    say,
    translate_help,
    translate_reason,
    words_of,
)


FILES = sorted(path for path in FOLDER.glob("*.toml") if path.stem not in ("languages", "help"))


def leaves(table: Any, path: str = "") -> list[tuple[str, dict[str, str]]]:
    """Return every text with its languages."""
    if "en" in table:
        return [(path, table)]
    return [leaf for key, inner in table.items() for leaf in leaves(inner, f"{path}.{key}")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_has_all_languages(path: Any) -> None:
    for name, texts in leaves(tomllib.loads(path.read_text(encoding="utf-8"))):
        assert set(texts) == set(LANGUAGES), name
        assert all(text.strip() for text in texts.values()), name


def test_every_message_has_the_same_parts_in_all_languages() -> None:
    for name, texts in load_words("alerts").items():
        parts = {
            language: sorted(piece.partition("}")[0] for piece in text.split("{")[1:])
            for language, text in texts.items()
        }
        assert len({tuple(found) for found in parts.values()}) == 1, name
        assert say(name, "ja", **dict.fromkeys(parts["en"], "X"))


def test_every_field_has_a_label_of_its_own_and_help() -> None:
    for field in fields_of(("top", "train")).values():
        assert "label" in words_of(field.id, "en"), field.id
        assert describe_field(field, "en")["info"], field.id


def test_a_translation_of_an_older_help_is_not_shown() -> None:
    assert translate_help("Something new.", "learning_rate", "zh") == "Something new."


def test_why_a_run_ended_is_told_in_all_languages_where_the_board_says_it() -> None:
    for sentence in (UNWATCHED, KILLED):
        assert len({translate_reason(sentence, code) for code in LANGUAGES}) == len(LANGUAGES)
        assert translate_reason(sentence, "en") == sentence
    assert translate_reason("ValueError: no", "zh") == "ValueError: no"


def test_every_element_with_a_label_has_words_in_its_tab() -> None:
    pytest.importorskip("gradio")
    engine = Engine()
    assert str(build_page(engine).title).startswith("LLaMA Factory (")
    manager = engine.manager
    for element in manager.get_elem_list():
        element_id = manager.get_id_by_elem(element)
        if getattr(element, "label", None) is not None:
            assert engine.words(element_id, "en").get("label"), element_id


def test_every_help_of_the_form_is_translated() -> None:
    for field in fields_of(("top", "train", "eval", "infer", "export")).values():
        english = describe_field(field, "en")["info"]
        assert all(describe_field(field, code)["info"] != english for code in LANGUAGES if code != "en"), field.id


def test_translated_help_is_that_of_the_declaration_in_all_languages() -> None:
    for key, texts in load_words("help").items():
        assert set(texts) == set(LANGUAGES), key
        assert key in list_params("train") or key in list_params("export"), key
    assert translate_help(list_params("train")["lora_rank"].help, "lora_rank", "ru").startswith("Ширина")
