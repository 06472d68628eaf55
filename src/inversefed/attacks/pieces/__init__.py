"""The parts that a user exchanges in a gradient inversion: objectives, priors, starts, optimizers, schedules and more.

Pieces do not import each other, but for those that are their defaults; `attacks.recipes` puts them together.
"""
