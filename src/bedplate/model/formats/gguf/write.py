"""A model leaves as a GGUF file, and only when the real llama.cpp computes the same from it.

What is judged: the file read back by us against llama.cpp (the same numbers, so that only arithmetic may differ), the tokens of texts,
and a conversation written out by the chat template. What four or eight bits cost is measured beside it and said, not judged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

import bedplate
from bedplate.core.errors import ConfigError, DataError, IntegrityError, ResourceError
from bedplate.core.files import publish
from bedplate.modality.chat_template import render
from bedplate.model.config import ModelConfig
from bedplate.model.formats.gguf.llama_cpp import Answers, Questions, ask, missing
from bedplate.model.formats.gguf.read import read
from bedplate.model.formats.gguf.shape import metadata, rope_divisors
from bedplate.model.formats.gguf.tensors import IGNORED, TURNED_PAIRWISE, in_pairs, their_name
from bedplate.model.formats.gguf.vocabulary import write_tokenizer
from bedplate.model.foundation import FoundationModel

Kind = Literal["f32", "f16", "q8_0", "q4_0"]
FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}
"""`general.file_type`."""
MOST_DIFFERENT: Mapping[str, float] = {"f32": 1e-3, "f16": 1e-2, "q8_0": 0.15, "q4_0": 0.25}
"""How far llama.cpp's logits may be from ours on the same file, as a share of their own spread: it rounds what flows between layers to
16 bits for f16 and to 8 for the quantised types. A wrong layout gives about 1."""
SAMPLE = (
    "The river carries small boats past seven stone bridges, while children count 128 lamps; it's late, and birds return.\n\n"
    "def area(r):\n    return 3.14159 * r ** 2  # Größe, café, 早上好 🌊\n"
)
"""What the file is judged on."""
TURNS = ({"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4."}, {"role": "user", "content": "Are you sure?"})
GREEDY = 16


@dataclass(frozen=True)
class Agreement:
    """What llama.cpp made of an exported file."""

    logits: float
    """Largest difference to ours on the same file: root mean square over the vocabulary, as a share of the logits' spread."""
    quantisation: float
    """The same to the model before it was exported."""
    greedy_tokens: int
    """Likeliest tokens that were compared."""
    greedy_same: int
    """Of these, the same as ours behind what llama.cpp wrote before."""
    templates: int
    """Conversations that came out the same."""


def export(model: FoundationModel, tokenizer: Path, path: Path, kind: Kind = "f16", *, template: str | None = None, name: str = "") -> Agreement:
    """Write the text half of a model as a GGUF file, judged by llama.cpp before it gets its name.

    Args:
        model: a dense model.
        tokenizer: its tokenizer.json.
        path: the file to write.
        kind: type of the matrices; vectors stay float32, and under q4_0 the token tables are q8_0.
        template: its chat template.
        name: what the file calls itself.
    Raises:
        ConfigError: llama.cpp has no such model, tokenizer or type.
        ResourceError: llama.cpp is not installed; nothing is written.
        IntegrityError: llama.cpp computes something else from the file; it is thrown away.
    """
    if kind not in FILE_TYPES:
        raise ConfigError(f"no type {kind!r}", f"known: {', '.join(FILE_TYPES)}")
    if hint := missing():
        raise ResourceError("a file is exported only when llama.cpp has read it, and it is not at hand", hint)
    text = tokenizer.read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        draft = Path(folder) / path.name
        write(model, text, draft, kind, template=template, name=name)
        agreement = judge(draft, model, text, kind, template)
        publish(draft, draft)
        draft.replace(path)
    return agreement


def write(model: FoundationModel, tokenizer_json: str, path: Path, kind: Kind, *, template: str | None = None, name: str = "") -> None:
    """Write the file, unjudged; `export` judges it. Arguments as there."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = model.config
    said = metadata(config) | write_tokenizer(tokenizer_json, template, config.vocab_size) | _tokens(config)
    writer = GGUFWriter(path, said.pop("general.architecture"))
    facts = {"general.type": "model", "general.name": name or path.stem, "general.quantized_by": f"bedplate {bedplate.__version__}"}
    for key, value in {**facts, **said, "general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}.items():
        _add(writer, key, value)
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3":
        writer.add_tensor(IGNORED[0], rope_divisors(config.rope_scaling, config.head_dim, config.rope_theta))
    for ours, tensor in model.state_dict().items():
        if ours.startswith("unit_"):
            continue
        values = _values(ours, tensor, config)
        stored = GGMLQuantizationType[_stored_as(ours, values, kind).upper()]
        writer.add_tensor(their_name(ours), quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def judge(path: Path, model: FoundationModel, tokenizer_json: str, kind: Kind, template: str | None) -> Agreement:
    """Ask llama.cpp about an exported file.

    Raises:
        IntegrityError: it computes something else, cuts text or writes conversations in another way.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    ids = tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    ids = ids[: model.config.max_position_embeddings - GREEDY]
    prompts = [ids[: max(1, len(ids) // 4)], ids[: max(1, len(ids) // 2)], ids]
    conversations = [TURNS[:1], TURNS] if template else []
    ends = {"bos_token": model.config.begin_token_id, "eos_token": next(iter(model.config.end_token_ids), None)}
    named = {role: str(tokenizer.id_to_token(number)) for role, number in ends.items() if number is not None}
    wanted = [render(template or "", turns, True, named) for turns in conversations]
    try:
        said = ask(path, Questions([SAMPLE], prompts, GREEDY, conversations, context=_context(len(ids))))
    except DataError as error:
        raise IntegrityError(f"the exported file does not load: {error.message}", error.hint) from error
    if said.tokens[0][: len(ids)] != ids:
        at = next(n for n, (theirs, ours) in enumerate(zip([*said.tokens[0], -1], [*ids, -2])) if theirs != ours)
        raise IntegrityError(f"llama.cpp cuts text in another way from token {at} on: {said.tokens[0][at : at + 3]}, not {ids[at : at + 3]}", _CUT)
    begin = named.get("bos_token", "")  # added by whoever cuts the text into tokens
    for theirs, ours in zip(said.rendered, wanted):
        if theirs.removeprefix(begin) != ours.removeprefix(begin):
            raise IntegrityError(f"llama.cpp's chat template writes {theirs[:200]!r}, ours {ours[:200]!r}", "give a plainer chat_template.jinja")
    written = read(path, torch.float32)
    agreement = Agreement(
        logits=max(_differences(written, prompts, said)),
        quantisation=max(_differences(model, prompts, said)),
        greedy_tokens=sum(map(len, said.continued)),
        greedy_same=sum(map(_same, [written] * len(prompts), prompts, said.continued)),
        templates=len(conversations),
    )
    if not agreement.logits <= MOST_DIFFERENT[kind]:
        raise IntegrityError(
            f"llama.cpp's logits differ from ours by {agreement.logits:.2g} of their spread, more than {MOST_DIFFERENT[kind]:g} for {kind}",
            "export as f16 and compare; a model whose activations have very large values suffers in 8 bits",
        )
    return agreement


_CUT = "export with the tokenizer.json that the model came with"


def _tokens(config: ModelConfig) -> dict[str, int]:
    """Begin, end and padding."""
    ends = config.end_token_ids
    named = {"bos": config.begin_token_id, "eos": ends[0] if ends else None, "eot": ends[1] if len(ends) > 1 else None}
    named["padding"] = config.special_ids.get("<|pad|>")
    return {f"tokenizer.ggml.{name}_token_id": number for name, number in named.items() if number is not None}


def _add(writer: Any, key: str, value: Any) -> None:
    """One metadata pair under the type that llama.cpp expects of it."""
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    adders[type(value)](key, value)


def _values(name: str, tensor: Tensor, config: ModelConfig) -> Any:
    values = tensor.detach().float().cpu().contiguous().numpy()
    return in_pairs(name, values, config) if config.model_type in TURNED_PAIRWISE else values


def _stored_as(name: str, values: Any, kind: Kind) -> str:
    if values.ndim == 1:
        return "f32"
    if kind in ("q8_0", "q4_0") and values.shape[-1] % 32:
        return "f16"
    return "q8_0" if kind == "q4_0" and name in ("model.embed_tokens.weight", "lm_head.weight") else kind


def _context(tokens: int) -> int:
    return -(-(tokens + GREEDY) // 256) * 256


@torch.inference_mode()
def _differences(model: FoundationModel, prompts: Sequence[Sequence[int]], said: Answers) -> list[float]:
    """Root mean square difference of centred log-probabilities behind each prompt, over their standard deviation."""
    found = []
    for prompt, theirs in zip(prompts, said.logprobs):
        ours = model.forward_tokens(torch.tensor([list(prompt)]))[0, -1].double().numpy()
        difference = ours - theirs if len(theirs) == len(ours) else np.full(1, np.inf)
        found.append(float(difference.std() / max(ours.std(), 1e-12)) if np.isfinite(difference).all() else float("inf"))
    return found


@torch.inference_mode()
def _same(model: FoundationModel, prompt: Sequence[int], continued: Sequence[int]) -> int:
    """Tokens of a continuation that are the likeliest here too."""
    logits = model.forward_tokens(torch.tensor([[*prompt, *continued]]))[0, len(prompt) - 1 : -1]
    return int((logits.argmax(-1) == torch.tensor(list(continued))).sum()) if continued else 0
