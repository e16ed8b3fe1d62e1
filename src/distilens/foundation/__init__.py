"""The base layer, which does not depend on images or models: errors, notation, files, randomness, devices, progress, estimates."""
