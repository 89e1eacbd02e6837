"""The official client for our server, from API_HOST, API_PORT and API_KEY; what the samples beside this file share."""

from typing import Any

from openai import OpenAI

from llamafactory.extras.env import read_env


def connect(**options: Any) -> OpenAI:
    """Return a client; the server itself needs no key on 127.0.0.1."""
    env = read_env()
    return OpenAI(api_key=env.api_key or "none", base_url=f"http://{env.api_host}:{env.api_port}/v1", **options)


def first_model(client: OpenAI) -> str:
    """Return the name of the model that is served."""
    return client.models.list().data[0].id
