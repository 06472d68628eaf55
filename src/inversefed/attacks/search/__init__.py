"""The search: minimize the matching objective from several starts, within a budget of steps, seconds and memory.

`inversion.GradientInversion` is the attack; `problem` is what it minimizes, `changes` what wraps it from step to step,
`minimize` the one loop, `restarts` runs it.
"""
