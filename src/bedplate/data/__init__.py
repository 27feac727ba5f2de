"""From raw files to batches: sources, clean, privacy, dedupe, tokenizer, shards, mixture, packing, loader, build. Knows no network."""
