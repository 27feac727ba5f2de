"""The network: config, presets, arithmetic, layers, trunk, senses, heads. Does not know where batches come from."""
