"""GGUF, llama.cpp's file of weights: header, tensors, shape and tokenizer, in and out; and the real llama.cpp that judges what goes out."""
