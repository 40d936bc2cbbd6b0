"""What a batch holds of each sample: pixels, tokens, stored vectors."""
