"""One request: bytes that a token makes the machine read, as a share of what it can read; turns of reading and of answering alternate.

The most that the machine can read is measured by two threads that add up an array which no cache holds.
"""

from __future__ import annotations

import argparse
import threading
import time

import numpy as np

from bedplate.adapt.base import Base
from bedplate.infer.engine_settings import EngineSettings, open_runner
from bedplate.infer.step import PAGE, Step
from bedplate.model.formats.get import get
from benchmarks.record import append

POSITION = 128
ARRAY_BYTES = 512 * 1024**2


def readable(arrays: list[np.ndarray]) -> float:
    """Bytes a second that as many threads read together."""
    threads = [threading.Thread(target=array.sum) for array in arrays]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(array.nbytes for array in arrays) / (time.perf_counter() - began)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    base = Base.load(get("smollm2-135m").folder)
    settings = EngineSettings(precision="int8", threads=arguments.threads, context=512, most_running=1)
    runner = open_runner(base.model, settings).runner
    config = base.model.config
    matrices = sum(p.numel() for name, p in base.model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name) + base.model.head.numel()
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (POSITION + 1) * 2
    read_bytes = matrices + cached  # int8 weights, one byte each; half-precision keys and values
    one = np.array([POSITION], np.int32)
    table = np.arange(-(-512 // PAGE), dtype=np.int32)[None]
    arrays = [np.ones(ARRAY_BYTES // arguments.threads // 8, np.int64) for _ in range(arguments.threads)]
    rates, times = [], []
    for _ in range(arguments.turns):
        rates.append(readable(arrays))
        for number in range(20):
            x = np.full((1, config.hidden_size), 0.01, np.float32)
            began = time.perf_counter()
            runner.logits(runner.run(Step(x, np.zeros(1, np.int32), one, one, one, table)).last)
            if number >= 10:
                times.append(time.perf_counter() - began)
    runner.close()
    per_turn = [float(np.median(times[10 * turn : 10 * turn + 10])) for turn in range(arguments.turns)]
    append(
        "decode_bandwidth",
        {"model": "smollm2-135m", "precision": "int8", "threads": arguments.threads, "position": POSITION, "bytes a token": read_bytes},
        {
            "readable": ([rate / 1e9 for rate in rates], "GB/s"),
            "step": ([1e3 * t for t in per_turn], "ms"),
            "read": ([read_bytes / t / 1e9 for t in per_turn], "GB/s"),
            "share_of_bandwidth": ([100 * read_bytes / t / rate for t, rate in zip(per_turn, rates)], "%"),
        },
    )


if __name__ == "__main__":
    main()
