"""The structs of trunk.cpp, field by field; `check` compares their sizes with the compiled ones."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import numpy as np

from bedplate.infer.step import PAGE

LANES = 16
"""Numbers side by side in a panel."""
FLOAT32, INT8, INT4 = 0, 1, 2
FACTOR_BYTES = 6 * LANES
"""Of a group of inputs in a panel of 4-bit weights (nibbles.h)."""


class Matrix(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("data", "scale", "factors", "bias")] + [(name, c_int32) for name in ("kind", "outputs", "inputs", "group")]


class LowRank(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("a", "b", "start", "first", "count", "gain")] + [("ranks", c_int32), ("exact", c_int32)]


class Layer(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("norm", "feed_norm", "query_norm", "key_norm")],
        *[(name, Matrix) for name in ("qkv", "output", "gate_up", "down")],
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
        ("turned", c_int32),
    ]


class Trunk(ctypes.Structure):
    _fields_ = [
        ("layer", ctypes.POINTER(Layer)),
        ("norm", c_void_p),
        *[(name, c_int32) for name in ("heads", "key_heads", "head_width", "layers", "width", "inner", "half_cache")],
        ("epsilon", c_float),
    ]


class Change(ctypes.Structure):
    _fields_ = [(name, LowRank) for name in ("qkv", "output", "gate_up", "down")]


class StepIn(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("x", "sequence", "position", "until", "slot", "cosine", "sine", "table", "start", "end", "change", "collected")],
        *[(name, c_int32) for name in ("n", "pages", "segments", "collect_from")],
    ]


class Scratch(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("x", "qkv", "attended", "gate_up", "low", "scores", "scale", "bytes", "total")],
        ("scores_per_thread", c_int32),
        ("low_room", c_int64),
    ]


def check(library: ctypes.CDLL) -> int:
    """What the compiled side adds to stored weights; an error of ours where the two sides differ."""
    told = (c_int32 * 9)()
    library.sizes(told)
    ours = [ctypes.sizeof(one) for one in (Matrix, LowRank, Layer, Trunk, Change, StepIn, Scratch)] + [PAGE]
    assert list(told)[:8] == ours, (list(told), ours)
    return int(told[8])


def at(array: np.ndarray[Any, Any] | None) -> int | None:
    """Where an array's numbers lie; None: nowhere."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return int(array.ctypes.data)
