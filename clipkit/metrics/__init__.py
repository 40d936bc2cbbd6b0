"""Pure functions from embeddings, ranks and texts to numbers."""
