"""Transformers: the tokens that went into a layer, and the patches of an image from the patch embedding's gradient."""
