"""Training: the loop, and the modules that it uses."""
