"""Benchmarks: each module's `main()` measures one case and appends a record to results/<case>.jsonl."""
