"""Bodies of requests as OpenAI's clients write them. Strict: a key that is not known here is refused, with the name that was probably meant.

Some keys are read and change nothing here; they are listed where they stand, so that common clients need no changes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bedplate.serve.errors import invalid

B = TypeVar("B", bound="Body")
MOST_TURNS = 4096
"""Of a conversation; each is read where all streams wait for it."""
MOST_TOOLS = 1024


class Body(BaseModel):
    """What all bodies have in common: known keys, no coercion, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


def read(cls: type[B], body: bytes) -> B:
    """A body read and checked.

    Raises:
        Refusal: it is no JSON, or does not fit.
    """
    try:
        return cls.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, cls.model_fields, _nested()) from None


def _nested() -> set[str]:
    found: set[str] = set()
    classes = Body.__subclasses__()
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        found |= set(cls.model_fields)
    return found


class TextPart(Body):
    """Text within a turn."""

    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """A picture."""

    url: str = Field(description="A data: URL. Addresses on the net are refused: the gateway fetches nothing.")
    detail: Literal["auto", "low", "high"] = Field("auto", description="Read and ignored.")


class ImagePart(Body):
    """A picture within a turn."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Body):
    """A sound."""

    data: str = Field(description="A sound file, in base64.")
    format: Literal["wav", "mp3", "flac", "ogg"]


class AudioPart(Body):
    """A sound within a turn."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputSeries(Body):
    """A table of numbers over time."""

    data: str = Field(description="CSV.")


class SeriesPart(Body):
    """Telemetry within a turn. Bedplate's own."""

    type: Literal["input_series"]
    input_series: InputSeries


ContentPart = Annotated[TextPart | ImagePart | AudioPart | SeriesPart, Field(discriminator="type")]


class CalledFunction(Body):
    """What was called, and with what."""

    name: str
    arguments: str


class MadeCall(Body):
    """A call that an earlier answer made."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class SystemMessage(Body):
    """What the model is told first."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = Field(None, description="Read and ignored.")


class UserMessage(Body):
    """What is asked."""

    role: Literal["user"]
    content: str | list[ContentPart]
    name: str | None = Field(None, description="Read and ignored.")


class AssistantMessage(Body):
    """What was answered before."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[MadeCall] | None = None
    name: str | None = Field(None, description="Read and ignored.")
    refusal: str | None = Field(None, description="Read and ignored, as are the next two: clients send answers back as they got them.")
    annotations: list[Any] | None = None
    audio: Any = None
    function_call: None = None


class ToolMessage(Body):
    """What a called function gave."""

    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str
    name: str | None = Field(None, description="Read and ignored.")


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    """A function that may be called."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict, description="A JSON schema.")
    strict: bool | None = Field(None, description="Read and ignored: arguments always follow their schema where the engine can make them.")


class FunctionTool(Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    """A function by its name."""

    name: str


class ToolChoice(Body):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class TextForm(Body):
    """Any text."""

    type: Literal["text"]


class JsonForm(Body):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A schema and its name."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Read and ignored: the answer always follows the schema.")


class SchemaForm(Body):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexForm(Body):
    """Text that a regular expression matches. Bedplate's own."""

    type: Literal["regex"]
    regex: str


class ChoiceForm(Body):
    """One of some texts. Bedplate's own."""

    type: Literal["choice"]
    choice: list[str] = Field(min_length=1)


ResponseFormat = Annotated[TextForm | JsonForm | SchemaForm | RegexForm | ChoiceForm, Field(discriminator="type")]


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="Read and ignored.")


class Drawn(Body):
    """How tokens are drawn, of every body that asks for text."""

    model: str
    temperature: float | None = Field(None, ge=0, le=2, description="1 where it is left out, as OpenAI has it; 0 takes the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, description="Bedplate's own; 0: all.")
    min_p: float | None = Field(None, ge=0, le=1, description="Bedplate's own.")
    repetition_penalty: float | None = Field(None, gt=0, description="Bedplate's own.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = Field(None, description="Token id, as text -> between -100 and 100.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Drawn afresh where it is left out.")
    n: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool = Field(False, description="Bedplate's own: go on until max_tokens.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Read and ignored, as are the rest: they name, store or bill at OpenAI.")
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatBody(Drawn):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_TURNS)
    max_completion_tokens: int | None = Field(None, ge=1, description="The same as max_tokens, which OpenAI calls the old name.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[FunctionTool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="Read and ignored.")
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = Field(None, description="Text alone.")
    reasoning_effort: str | None = Field(None, description="Read and ignored.")
    verbosity: str | None = Field(None, description="Read and ignored.")


class CompletionBody(Drawn):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="A text, texts, token ids, or lists of token ids.")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=1, description="1: nothing is drawn that is not told.")
    suffix: None = None
    response_format: ResponseFormat | None = Field(None, description="Bedplate's own.")


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Must be the model's own width: vectors are not cut.")
    user: str | None = Field(None, description="Read and ignored.")


class LookedAt(Body):
    """What a worker says something of."""

    model: str
    input: str | list[str] | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MOST_TURNS, description="One example, of any sense, in place of input.")
    user: str | None = Field(None, description="Read and ignored.")


class ClassifyBody(LookedAt):
    """POST /v1/classify. Bedplate's own: texts or an example of any sense for a worker that classifies."""


class PredictBody(LookedAt):
    """POST /v1/predict. Bedplate's own: the same for a worker that gives numbers, finds stretches of texts, or classifies."""


class Document(Body):
    """A text to rank."""

    text: str


class RerankBody(Body):
    """POST /v1/rerank, as Cohere, Jina and vLLM have it: for a worker that ranks."""

    model: str
    query: str
    documents: list[str | Document] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1, description="Only so many, the best; all where it is left out.")
    return_documents: bool = Field(False, description="Say the texts again.")
    user: str | None = Field(None, description="Read and ignored.")
