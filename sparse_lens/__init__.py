"""sparse_lens: weight-sparse transformers in TransformerLens, and their circuits beside SAE features."""
