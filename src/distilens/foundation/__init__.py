"""The base layer. It knows neither images nor models: errors, notation, files, randomness, devices, progress, estimates."""
