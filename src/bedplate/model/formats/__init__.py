"""Weights of other houses: Hugging Face folders and GGUF files, in and out; the catalogue, and how what it lists is fetched."""
