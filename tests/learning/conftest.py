"""The weights of the learning tests stay where the user keeps them."""

import pytest

from llamafactory.extras.env import read_env


USER_CACHE = read_env().cache  # before the tests get a cache of their own


@pytest.fixture(autouse=True)
def weights_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the model from the user's cache: it is downloaded once."""
    monkeypatch.setenv("LLAMAFACTORY_CACHE", USER_CACHE)
