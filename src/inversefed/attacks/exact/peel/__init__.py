"""Peeling: the image behind a chain of layers, one layer after another, from the head to the input.

`attack.Peel` is the attack and `layers` its recursion; `state` is what is known at a layer, `forecast` says
beforehand where it ends. One module a step: the activation pattern of a ReLU, the input of a convolution, a block
with a shortcut, a pooling, and the feature inversion where no closed form is left.
"""
