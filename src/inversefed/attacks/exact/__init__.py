"""Exact methods: attacks that solve for the data in closed form instead of searching, one method a file."""
