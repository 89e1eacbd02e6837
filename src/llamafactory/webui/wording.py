"""The words of the page in five languages: `locales/<tab>.toml`.

A table stands for an element (`[learning_rate]` in train.toml is `train.learning_rate`) or, in alerts.toml, for a
message. It holds `label`, `info`, `placeholder`, `value` or `choices.<word>`, each with all languages. The help of a
form field comes from the declaration of its key; help.toml translates it, sentence by sentence: a translation names
the English it was made from, so that one that is out of date is not shown.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


FOLDER = Path(__file__).with_name("locales")
LANGUAGES: Mapping[str, str] = tomllib.loads((FOLDER / "languages.toml").read_text(encoding="utf-8"))
"""Code -> the language's name in itself."""
DEFAULT_LANGUAGE = "en"
SHARED = "data"
"""Words of the data panel, which stands in several tabs."""
Words = Mapping[str, Mapping[str, Any]]


@functools.cache
def load_words(tab: str) -> Words:
    """Return the entries of one file by element name; a file that is not there has none."""
    path = FOLDER / f"{tab}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def words_of(element: str, language: str) -> dict[str, Any]:
    """Return label, info, placeholder, value and choices of an element (`train.dataset`) in one language."""
    tab, _, name = element.partition(".")
    entry = load_words(tab).get(name) or load_words(SHARED).get(name, {})
    found: dict[str, Any] = {}
    for attribute, value in entry.items():
        if attribute == "choices":
            found[attribute] = {word: _pick(names, language) for word, names in value.items()}
        else:
            found[attribute] = _pick(value, language)
    return found


def page_words(tab: str, language: str) -> dict[str, str]:
    """Return the words of a tab that belong to no element, by name."""
    language = language if language in LANGUAGES else DEFAULT_LANGUAGE
    values = {name: words_of(f"{tab}.{name}", language).get("value") for name in load_words(tab)}
    return {name: str(value) for name, value in values.items() if value is not None}


def say(message: str, language: str, **parts: object) -> str:
    """Return a message of alerts.toml with its parts filled in."""
    return _pick(load_words("alerts")[message], language).format(**parts)


def translate_reason(english: str, language: str) -> str:
    """Return why a run ended in a language, where the sentence is one of the board's own and not of the run."""
    own = (texts for name, texts in load_words("alerts").items() if name.startswith("reason_"))
    return next((_pick(texts, language) for texts in own if texts["en"] == english), english)


def translate_help(english: str, key: str, language: str) -> str:
    """Return the help of a key in a language; the English itself where there is no translation of just this."""
    entry = load_words("help").get(key, {})
    return entry[language] if entry.get("en") == english and language in entry else english


def _pick(texts: Mapping[str, str], language: str) -> str:
    return texts.get(language, texts[DEFAULT_LANGUAGE])
