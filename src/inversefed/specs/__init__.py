"""Text and JSON to values, without running code: the names that a user chooses by, and what they build."""
