"""Other engines behind the same `Generator`: llama.cpp for quantised files, and any endpoint that speaks OpenAI's API."""
