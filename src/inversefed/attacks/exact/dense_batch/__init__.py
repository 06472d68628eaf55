"""Several examples from the gradient of one fully connected layer: low rank, sparsity, independence."""
