"""Runs every benchmark in turn; each appends its record, and a failure of one does not stop the others. `make bench` calls it.

python -m benchmarks.run_all [CASE ...]
"""

from __future__ import annotations

import subprocess
import sys
import time

CASES: tuple[str, ...] = (
    "corpus_build", "pretrain_speed", "lora_speed", "time_to_quality", "label_efficiency", "adaptation_pays", "generation", "agreement",
    "open_weights_scores", "attack_techniques", "serving_peers", "decode_bandwidth", "adapters_in_batch", "prompt_lookup", "serve_trust",
    "gateway_load", "making_speed", "cache_timing", "gpu_small",
)  # fmt: skip


def main() -> int:
    """Run the named cases, or all; the exit code counts the failures."""
    chosen = sys.argv[1:] or list(CASES)
    unknown = [case for case in chosen if case not in CASES]
    if unknown:
        print(f"error: no benchmark {unknown[0]}\nhint: known: {', '.join(CASES)}", file=sys.stderr)
        return 2
    failures = 0
    for case in chosen:
        started = time.monotonic()
        print(f"== {case}", flush=True)
        # A process each: no case inherits another's threads, caches or memory.
        failed = subprocess.run([sys.executable, "-m", f"benchmarks.{case}"], check=False).returncode != 0
        failures += failed
        print(f"== {case} {'FAILED' if failed else 'done'} after {time.monotonic() - started:.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
