"""The control runs of an audit, and what they are evidence for: where attacks meet the judgement, under the pipeline.

`runs` repeats an attack where there is nothing to find; `case` sets what came of it beside what the attack found.
"""
