"""Shipped for users: tiny models, tiny corpora, fakes."""
