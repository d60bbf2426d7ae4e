"""What every backend shares: the description of a call, its plan, the choice of backend, threads."""
