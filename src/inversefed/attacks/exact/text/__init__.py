"""Sentences, exactly, from the gradients of a transformer's embeddings and of its first attention layers."""
