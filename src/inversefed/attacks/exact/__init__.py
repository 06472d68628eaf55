"""Closed forms: attacks that solve for the data instead of searching for it, one method a file."""
