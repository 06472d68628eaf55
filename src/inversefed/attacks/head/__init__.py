"""The classification head: what its gradient says of labels, and the input of each example to it."""
