"""The search: minimize the matching objective from several starts, within a budget of steps, seconds and memory.

`inversion.GradientInversion` is the attack; `problem` is what it minimizes, `minimize` the one loop, `restarts` runs
it.
"""
