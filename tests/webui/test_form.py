"""The form without a browser: values to keys and back."""

import pytest

from llamafactory.extras.errors import UserError
from llamafactory.webui.exchange import fill_form, read_form
from llamafactory.webui.form import start_value
from llamafactory.webui.layout import fields_of, list_fields, list_groups
from llamafactory.webui.places import Places


def test_every_field_stands_in_one_group_and_every_name_of_a_group_is_a_field(tmp_path) -> None:
    for tab in ("top", "train"):
        names = [name for group in list_groups(tab) for name in group.names]
        assert len(names) == len(set(names))
        assert set(list_fields(tab)) <= set(names)


def test_what_the_form_writes_fills_it_again() -> None:
    fields = fields_of(("top", "train"))
    start = {element: start_value(field) for element, field in fields.items()}
    config = read_form(fields, start)
    filled = fill_form(fields, config)
    assert filled.rest == {}
    assert filled.values == start


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "", "saves/../../x", "saves/", "x; touch y", "<b>x</b>", "a\x00b", ".."]
)
def test_a_run_cannot_be_put_outside_the_folder_of_runs(tmp_path, name: str) -> None:
    with pytest.raises(UserError):
        Places(work=tmp_path).run_dir("Custom", "lora", name)
