"""The control runs of an audit: what an attack finds where there is nothing to find, and what is only made up.

`null_update` makes updates without an image in them, `runs` repeats the attack on them and runs its
prior alone, and `uniqueness` asks what a second start leaves the same.
"""
