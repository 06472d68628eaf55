"""Where updates come from: training loops and federated-learning frameworks, each adapter beside its framework."""
