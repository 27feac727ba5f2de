"""SentencePiece's tokenizers (Llama 2, Mistral) as tokenizer.json and back: pieces with scores on one side, ordered merges on the other.

A score says which of two neighbouring pieces are joined first; so do merges in order. Bytes that no piece holds are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPACE = "▁"
BYTE = 6
"""`tokenizer.ggml.token_type` of <0x00> to <0xFF>."""
NORMALISER = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]  # fmt: skip


def tree(tokens: Sequence[str], scores: Sequence[float], unknown: str, prefixed: bool) -> dict[str, Any]:
    """The parts of a tokenizer.json that differ from byte-level BPE.

    Args:
        tokens: in order of their ids.
        scores: one a token, higher joins first.
        unknown: the token of what has no piece.
        prefixed: whether a space is put before a text.
    """
    if len(scores) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens and {len(scores)} scores")
    ids = {token: number for number, token in enumerate(tokens)}
    joins = [
        (float(score), len(token[:at]), len(token[at:]), token[:at], token[at:])
        for token, score in zip(tokens, scores)
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]
    joins.sort(key=lambda join: join[:3], reverse=True)
    normalisers, decoders = (NORMALISER, DECODER) if prefixed else (NORMALISER[1:], DECODER[:-1])
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalisers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": ids,
            "merges": [[left, right] for *_, left, right in joins],
        },
    }  # fmt: skip


def is_such(tree: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind."""
    normaliser = tree.get("normalizer") or {}
    parts = normaliser.get("normalizers", [normaliser])
    return bool(tree["model"].get("byte_fallback")) and NORMALISER[1] in parts and not tree.get("pre_tokenizer")


def metadata(tree: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    """What a GGUF file says of such a tokenizer: the earlier a piece is joined, the higher its score.

    Args:
        tree: the tokenizer.json.
        tokens: in order of their ids.
        types: of the tokens, those of bytes not yet told apart.
    """
    first: dict[str, int] = {}
    for rank, merge in enumerate(tree["model"]["merges"]):
        first.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), rank)
    unknown = tree["model"].get("unk_token")
    normaliser = tree["normalizer"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": [-float(first.get(token, len(first))) for token in tokens],
        "tokenizer.ggml.token_type": [2 if token == unknown else BYTE if _is_byte(token) else kind for token, kind in zip(tokens, types)],
        "tokenizer.ggml.add_space_prefix": NORMALISER[0] in normaliser.get("normalizers", [normaliser]),
    }


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
