"""Studies of several runs: the measured evidence, and recommendations from it."""
