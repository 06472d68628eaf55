"""Measurements that are too long for tests: `python -m benchmarks.inversion --json OUT`."""
