"""The base layer, which depends on neither images nor models: errors, notation, files, randomness, devices, progress, estimates."""
