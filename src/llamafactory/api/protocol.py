"""The bodies of requests, as OpenAI's API defines them, and the common additions of open servers.

A field that would change the answer and is not supported is refused, never ignored; fields that only matter to
OpenAI's own service (billing, storage, caching) are accepted and do nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


Text = Annotated[str, Field(max_length=2**24)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Lenient(BaseModel):
    """A part of a request that clients send back as they got it, with fields that nobody needs."""

    model_config = ConfigDict(extra="ignore")


class Strict(BaseModel):
    """A request; what is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class CalledFunction(Lenient):
    """A function's name and its arguments as JSON text."""

    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class ToolCall(Lenient):
    """A call that an assistant made earlier in the conversation."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Reference(Lenient):
    """Where a medium is: a data URL, or what the operator of the server has opened."""

    url: Text


class SoundData(Lenient):
    """A sound in base64."""

    data: Text
    format: str = "wav"


class ContentPart(Lenient):
    """A piece of a message: text, an image, a sound or a video."""

    type: str
    text: Text | None = None
    refusal: Text | None = None
    image_url: Reference | Text | None = None
    video_url: Reference | Text | None = None
    audio_url: Reference | Text | None = None
    input_audio: SoundData | None = None


class ChatMessage(Lenient):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None
    name: str | None = None
    refusal: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Text | None = None
    """What the assistant thought, as this server gave it."""
    reasoning: Text | None = None
    """The same under its other common name."""


class FunctionTool(Lenient):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Lenient):
    """A tool; only functions are known."""

    type: Literal["function"] = "function"
    function: FunctionTool


class ChosenFunction(Lenient):
    """The name of a tool that has to be called."""

    name: str


class ToolChoice(Lenient):
    """The demand for one certain tool."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Lenient):
    """A named JSON schema."""

    name: str = "answer"
    description: str | None = None
    json_schema: dict[str, Any] | bool | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Lenient):
    """What the text of the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(Lenient):
    """Extras of a stream."""

    include_usage: bool | None = None


class TemplateOptions(Strict):
    """Variables of the chat template, under the name that other servers gave them."""

    enable_thinking: bool | None = None


class GenerationRequest(Strict):
    """What both kinds of completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: Text | list[Text] | None = None
    seed: Seed | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    # Additions of open servers.
    do_sample: bool | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    # Accepted: they change nothing about the answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatCompletionRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=65536)]
    max_completion_tokens: Count | None = None
    tools: Annotated[list[Tool], Field(max_length=1024)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None


class CompletionBody(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class ScoreBody(Strict):
    """The body of POST /v1/score/evaluation."""

    model: str
    messages: Annotated[list[Text], Field(min_length=1, max_length=4096)]
    max_length: Count | None = None
