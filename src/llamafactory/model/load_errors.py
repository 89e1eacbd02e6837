"""What transformers, the hub and PEFT raise about a model that cannot be read, each turned into one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from transformers import __version__ as transformers_version

from ..extras.catalog import similar_models
from ..extras.errors import UserError


# A piece of the foreign message -> what it means for the user.
MEANINGS = {
    "trust_remote_code": "brings its own Python code; set trust_remote_code: true if you trust whoever wrote it",
    "does not recognize this architecture": f"is of a type that transformers {transformers_version} does not know",
    "Unrecognized model": "has a config.json without a model_type that transformers knows",
    "Unrecognized configuration class": "is not a language model that generates text",
    "instantiate the backend tokenizer": "has no tokenizer files",
    "size mismatch": "has weights of other shapes than its config says",
    "ignore_mismatched_sizes": "has weights of other shapes than its config says",
}


@contextmanager
def reading_model(source: Path | str) -> Iterator[None]:
    """Turn the known ways in which reading a model fails into a UserError; anything else is a bug and passes."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"The weights of {source} are damaged or incomplete ({error}).") from error
    except OSError as error:
        raise UserError(_sentence(source, error)) from error
    except (ValueError, RuntimeError) as error:
        meaning = next((text for piece, text in MEANINGS.items() if piece in str(error)), None)
        if meaning is None:
            raise
        raise UserError(f"The model {source} {meaning}.") from error


def _sentence(source: Path | str, error: OSError) -> str:
    if isinstance(source, Path):
        return f"The model in {source} could not be read: {_first_line(error)}"

    from huggingface_hub import errors

    causes = _causes(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if has(errors.GatedRepoError):
        return f"The model {source!r} is gated: ask for access on its page, then set hf_hub_token."
    if has(errors.RevisionNotFoundError):
        return f"The model {source!r} has no such revision; check model_revision."
    if has(errors.RepositoryNotFoundError):
        return (
            f"There is no model {source!r}: neither a local folder nor a repository on the hub that you can see."
            f"{similar_models(source)}"
        )
    if has(errors.RemoteEntryNotFoundError):
        return f"The repository {source!r} lacks a file that a safetensors model needs: {_first_line(error)}"
    return (
        f"The model {source!r} is not on this machine and the hub could not be reached; check the name and the "
        f"network, or give a local folder.{similar_models(source)}"
    )


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
