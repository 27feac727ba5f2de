"""The HTTP gateway: answers of any Generator for people and programs, in OpenAI's words, with keys, limits, audit and routes."""
