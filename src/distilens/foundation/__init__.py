"""The base layer, which knows neither images nor models: errors, notation, files, randomness, devices, progress, estimates."""
