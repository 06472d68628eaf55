"""The judgement: truth meets the reconstruction here, and nowhere else.

    (Reconstruction, truth, controls) --align--> metrics --> Verdict

Images are paired with the truths by `align`, judged by every function of `metrics`, and set beside what needs no
gradient at all, the images of `controls`. Nothing here sees the attack or the network: a metric of features is given
a callable.
"""
