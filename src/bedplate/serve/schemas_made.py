"""Bodies that ask for things to be made: pictures and speech as OpenAI's clients write them, forecasts in words of our own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bedplate.serve.schemas import Body

SEED = Field(None, ge=-(2**63), lt=2**63, description="Bedplate's own; drawn afresh where it is left out.")
GUIDANCE = Field(None, ge=0, le=20, description="Bedplate's own: 1 follows the caption, 1.5 to 3 insists on it.")
STEPS = Field(None, ge=1, le=200, description="Bedplate's own: from noise to a patch; 20 where it is left out.")


class ImageBody(Body):
    """POST /v1/images/generations."""

    model: str
    prompt: str = Field(max_length=32_000, description="The caption; empty: any picture.")
    n: int | None = Field(None, ge=1)
    size: str | None = Field(None, pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$", description="WIDTHxHEIGHT in pixels, or auto: as large as the model learned.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="b64_json. A url is refused: the gateway keeps no pictures.")
    output_format: Literal["png"] | None = None
    stream: Literal[False] | None = Field(None, description="Pictures come whole.")
    seed: int | None = SEED
    guidance: float | None = GUIDANCE
    steps: int | None = STEPS
    user: str | None = Field(None, description="Read and ignored, as are the rest: they choose among what OpenAI offers.")
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    safety_identifier: str | None = None


class SpeechBody(Body):
    """POST /v1/audio/speech."""

    model: str
    input: str = Field(max_length=32_000, description="What the sound is described as, or what is to be said, as the model learned it.")
    response_format: Literal["wav"] | None = Field(None, description="wav, also where it is left out.")
    seconds: float | None = Field(None, gt=0, le=600, description="Bedplate's own: longest sound; 3 where it is left out. It ends where the model ends it.")
    speed: float | None = Field(None, ge=1, le=1, description="1: a sound is as fast as it was learned.")
    stream_format: Literal["audio"] | None = None
    seed: int | None = SEED
    guidance: float | None = GUIDANCE
    steps: int | None = STEPS
    voice: Any = Field(None, description="Read and ignored, as are instructions: a model has the voices that its captions name.")
    instructions: str | None = None


class ForecastBody(Body):
    """POST /v1/forecasts. Bedplate's own."""

    model: str
    values: list[float] = Field(min_length=1, max_length=1_000_000, description="The past of one channel, in its own unit, oldest first.")
    points: int = Field(ge=1, description="To forecast.")
    name: str = Field("", max_length=1000, description="Of the channel, as in training.")
    paths: int | None = Field(None, ge=1, description="That are drawn; 16 where it is left out.")
    seed: int | None = SEED
    steps: int | None = STEPS
    user: str | None = Field(None, description="Read and ignored.")
