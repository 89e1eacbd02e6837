"""The application: routes, the door in front of them, and errors in one shape."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..extras.errors import UserError
from ..extras.logging import get_logger
from ..extras.version import VERSION
from .chat import chat_completion
from .completions import text_completion
from .errors import ApiError, from_user_error, from_validation
from .guard import Guard
from .metrics import CLIENT_LEFT, Measured
from .objects import JsonObject, model_card, new_id, now
from .protocol import ChatCompletionRequest, CompletionBody, ScoreBody
from .service import ClientGone, Service
from .settings import Settings


if TYPE_CHECKING:
    from ..chat.base_engine import BaseEngine

TITLE = "llamafactory"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RETRY_AFTER = {"retry-after": "1"}
logger = get_logger(__name__)


def create_app(engine: "BaseEngine", settings: Settings | None = None) -> FastAPI:
    """Return the application that serves an engine; the engine is closed when the server stops."""
    settings = settings or Settings()
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        engine.close()

    middleware = [Middleware(Measured, metrics=service.metrics, root_path=settings.root_path)]
    if settings.cors_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        )
    middleware.append(Middleware(Guard, settings=settings))
    app = FastAPI(title=TITLE, version=VERSION, root_path=settings.root_path, lifespan=lifespan, middleware=middleware)
    add_error_handlers(app)
    add_read_routes(app, service)
    add_write_routes(app, service)
    return app


def add_read_routes(app: FastAPI, service: Service) -> None:
    """Add what only looks."""
    created = now()

    @app.get("/health")
    async def health() -> JsonObject:
        """Say that the server is up."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the counters for Prometheus."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    @app.get("/v1/models")
    async def list_models() -> JsonObject:
        """List the model, and it with each adapter."""
        return {"object": "list", "data": [model_card(name, created) for name in service.model_names]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> JsonObject:
        """Describe one model."""
        service.find_adapter(name)
        return model_card(name, created)


def add_write_routes(app: FastAPI, service: Service) -> None:
    """Add what makes the model work."""

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: Annotated[ChatCompletionRequest, Body()], request: Request) -> Response | JsonObject:
        """Answer a conversation."""
        return await chat_completion(service, body, request)

    @app.post("/v1/completions", response_model=None)
    async def complete(body: Annotated[CompletionBody, Body()], request: Request) -> Response | JsonObject:
        """Continue a text."""
        return await text_completion(service, body, request)

    @app.post("/v1/score/evaluation")
    async def score(body: Annotated[ScoreBody, Body()], request: Request) -> JsonObject:
        """Score texts with a reward model."""
        if service.engine.can_generate:
            message = "This server holds a model that writes; only a reward model (stage: rm) can score texts."
            raise ApiError(405, message, code="not_a_reward_model")
        service.find_adapter(body.model)
        scores = await service.scores(request, body.messages, body.max_length)
        return {"id": new_id("scoreval-"), "object": "score.evaluation", "model": body.model, "scores": scores}


def add_error_handlers(app: FastAPI) -> None:
    """Write every error in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(UserError)
    async def on_user_error(_: Request, error: UserError) -> JSONResponse:
        refused = from_user_error(error)
        return refused.response(RETRY_AFTER if refused.status in (429, 503) else None)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors(), field_names(request)).response()

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        place = f"{request.method} {request.url.path}"
        message = f"{place}: {error.detail}."
        return ApiError(error.status_code, message).response(error.headers)

    @app.exception_handler(ClientGone)
    async def on_client_gone(_: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        message = "The server made a mistake; its log says more."
        return ApiError(500, message, kind="server_error").response()


def field_names(request: Request) -> tuple[str, ...]:
    """Return the fields that the body of a route may have."""
    models: dict[str, Any] = {
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/completions": CompletionBody,
        "/v1/score/evaluation": ScoreBody,
    }
    route = request.scope.get("route")
    model = models.get(getattr(route, "path", ""))
    return tuple(model.model_fields) if model else ()
