"""What all backends share: the description of a call, its plan, the choice of backend, threads."""
