"""Garbage collection is paused while libraries are imported, and comes back as it was."""

import gc

import pytest

from llamafactory.extras.garbage import importing


@pytest.mark.parametrize("was_enabled", [True, False])
def test_the_collector_comes_back_as_it_was(was_enabled: bool) -> None:
    (gc.enable if was_enabled else gc.disable)()
    try:
        with importing():
            is_enabled_inside = gc.isenabled()
        is_enabled_after = gc.isenabled()
        num_frozen = gc.get_freeze_count()
    finally:
        gc.enable()
        gc.unfreeze()

    assert not is_enabled_inside
    assert is_enabled_after == was_enabled
    assert num_frozen > 0


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    gc.unfreeze()

    assert gc.isenabled()
