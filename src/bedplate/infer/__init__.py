"""From a model to answers: generation in every sense, embeddings."""
