"""The tokenizer in a GGUF file as a tokenizer.json, and back. Byte-level BPE, cut the way that `tokenizer.ggml.pre` names; SentencePiece's
is in pieces.py.

Source of the patterns: llama.cpp's src/llama-vocab.cpp, and the tokenizer.json of the models that each name stands for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bedplate.core.errors import BedplateError, ConfigError, DataError, IntegrityError, did_you_mean
from bedplate.model.formats.gguf import pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""`tokenizer.ggml.token_type`."""
_DAMAGED = "fetch the file again"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _after(*cutters: dict[str, Any], use_regex: bool = False) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*cutters, _bytes(use_regex)]}


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": _bytes(True),
    "smollm": _after({"type": "Digits", "individual_digits": True}, use_regex=True),
    "qwen2": _after(_split(_WORDS % r"\p{N}")),
    "llama-bpe": _after(_split(_WORDS % r"\p{N}{1,3}")),
    "tekken": _after(_split(_TEKKEN)),
    "default": _after(_split(r"[\p{P}\$\+<=>\^~\|]+"), _split(_GPT2), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]")),
}
"""Name -> the pre-tokenizer that cuts text before pairs are merged."""
SAME = {
    "phi-2": "gpt-2", "mpt": "gpt-2", "olmo": "gpt-2", "jais": "gpt-2", "starcoder": "smollm", "refact": "smollm", "command-r": "smollm",
    "stablelm2": "qwen2", "deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe", "falcon3": "llama-bpe",
}  # fmt: skip
"""Other names of the same cut."""
WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
"""Names under which a piece that is a token is taken whole, without merging."""
NORMALISED = {"qwen2": {"type": "NFC"}}
"""Qwen's own tokenizer composes characters first; llama.cpp does not."""


def read_tokenizer(said: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of the tokenizer's files: tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja.

    Args:
        said: the file's metadata.
    Raises:
        DataError: a kind of tokenizer that is not read.
        IntegrityError: it is damaged.
    """
    from tokenizers import Tokenizer

    kind, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "default")
    if not isinstance(kind, str) or kind not in ("gpt2", "llama"):
        raise DataError(f"the file's tokenizer is of the kind {kind!r}", "byte-level BPE (gpt2) and SentencePiece (llama) are read")
    cut = SAME.get(str(pre), str(pre))
    if kind == "gpt2" and cut not in CUTS:
        raise DataError(f"the file's tokenizer cuts text the way of {pre!r}", did_you_mean(str(pre), [*CUTS, *SAME]))
    try:
        tokens = _texts(said, "tokens")
        types = [int(each) for each in said.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))]
        if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
            raise ValueError(f"{len(tokens)} tokens, {len(set(tokens))} of them different, {len(types)} types")
        added = [
            {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": of != USER_DEFINED}
            for number, (token, of) in enumerate(zip(tokens, types))
            if of in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        named = {role: tokens[int(said[f"tokenizer.ggml.{key}_token_id"])] for role, key in _ROLES.items() if f"tokenizer.ggml.{key}_token_id" in said}
        begins = kind == "llama" or (pre in WHOLE_FIRST and cut == "llama-bpe")
        first = said.get("tokenizer.ggml.add_bos_token", begins) and "bos_token" in named
        if kind == "llama":
            unknown = named.get("unk_token", next((token for token, of in zip(tokens, types) if of == UNKNOWN), tokens[0]))
            parts = pieces.tree(tokens, said["tokenizer.ggml.scores"], unknown, bool(said.get("tokenizer.ggml.add_space_prefix", True)))
        else:
            parts = _byte_level(tokens, _texts(said, "merges"), str(pre))
        after = _begin(named["bos_token"], tokens) if first else None if kind == "llama" else _bytes(True)
        text = json.dumps({"version": "1.0", "added_tokens": added, "post_processor": after, **parts}, ensure_ascii=False)
        Tokenizer.from_str(text)
    except BedplateError:
        raise
    except Exception as error:  # the library raises a bare Exception
        raise IntegrityError(f"the file's tokenizer is damaged: {error}", _DAMAGED) from error
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "add_bos_token": bool(first), **named}
    files = {"tokenizer.json": text, "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    template = said.get("tokenizer.chat_template")
    return files | ({"chat_template.jinja": template} if isinstance(template, str) and template else {})


def write_tokenizer(tokenizer_json: str, template: str | None, vocab_size: int) -> dict[str, Any]:
    """A tokenizer.json as GGUF metadata.

    Args:
        tokenizer_json: the text of the file.
        template: the chat template, or None.
        vocab_size: rows of the model's token table; ids that no token has are filled up.
    Raises:
        ConfigError: llama.cpp has no such tokenizer.
        DataError: it is no tokenizer.json.
    """
    try:
        tree = json.loads(tokenizer_json)
        model, added = tree["model"], tree["added_tokens"]
        ids = {number: token for token, number in model["vocab"].items()} | {entry["id"]: entry["content"] for entry in added}
        types = {entry["id"]: CONTROL if entry["special"] else USER_DEFINED for entry in added}
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"the tokenizer is damaged or no byte-level BPE: {error!r}", "give the tokenizer.json that the model came with") from error
    if (highest := max(ids)) >= vocab_size:
        raise ConfigError(f"the tokenizer has a token {highest}, the model only {vocab_size} rows", "take the tokenizer that the model came with")
    tokens = [ids.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    kinds = [types.get(number, NORMAL if number in ids else UNUSED) for number in range(vocab_size)]
    if pieces.is_such(tree):
        said = pieces.metadata(tree, tokens, kinds)
    else:
        said = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _name_of_cut(tree),
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges,
        }
    said["tokenizer.ggml.add_bos_token"] = (tree.get("post_processor") or {}).get("type") == "TemplateProcessing"
    return said | ({"tokenizer.chat_template": template} if template else {})


def _byte_level(tokens: list[str], merges: list[str], pre: str) -> dict[str, Any]:
    return {
        "normalizer": NORMALISED.get(pre),
        "pre_tokenizer": CUTS[SAME.get(pre, pre)],
        "decoder": _bytes(True),
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in WHOLE_FIRST,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [_pair(merge) for merge in merges],
        },
    }


def _name_of_cut(tree: Mapping[str, Any]) -> str:
    whole = bool(tree["model"].get("ignore_merges"))
    for name, cut in CUTS.items():
        if _plain(tree.get("pre_tokenizer")) == _plain(cut) and whole == (name in WHOLE_FIRST):
            return name
    if _plain(tree.get("pre_tokenizer")) == _plain(CUTS["llama-bpe"]):
        return "smaug-bpe"  # the same cut, merged from the ground
    raise ConfigError("llama.cpp has no name for the way this tokenizer cuts text", f"known: {', '.join(CUTS)}")


def _plain(cutter: Any) -> Any:
    """A pre-tokenizer without what changes no token: offsets, and two spellings of the contractions."""
    if isinstance(cutter, dict):
        return {key: _plain(value) for key, value in cutter.items() if key not in ("trim_offsets", "invert")}
    if isinstance(cutter, list):
        return [_plain(each) for each in cutter]
    return cutter.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS) if isinstance(cutter, str) else cutter


_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def _texts(said: Mapping[str, Any], key: str) -> list[str]:
    found = said.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list):
        raise ValueError(f"no tokenizer.ggml.{key}")
    return found


def _pair(merge: str) -> list[str]:
    left, _, right = merge.partition(" ")
    return [left, right]


def _begin(token: str, tokens: list[str]) -> dict[str, Any]:
    """What puts a token before every text."""
    mark, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    named = {token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [mark, text], "pair": [mark, text, second], "special_tokens": named}
