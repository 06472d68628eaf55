"""Adapters: updates taken where they are made, in training loops and frameworks that are not ours."""
