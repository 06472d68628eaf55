"""How a network is read: its layers in order, what its architecture hides, the sizes of its layers' inputs."""
