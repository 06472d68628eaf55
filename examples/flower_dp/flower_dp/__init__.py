"""A first app of Flower with PyTorch."""
