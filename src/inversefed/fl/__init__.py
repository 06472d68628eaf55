"""The world: how an update comes to be, and what a server sees of it.

    update* = defend(client(network, images*, labels*))

A module is frozen into a `Network`, a client turns network and private batch into an update,
defenses change the update, and `observe` lets through what the threat model allows.
"""
