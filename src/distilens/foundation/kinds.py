"""The kinds of parts that a notation names. This module imports nothing, so that the command line starts quickly."""

REGISTRIES = {
    "methods": "methods:METHODS",
    "models": "models:MODELS",
    "data": "data:SOURCES",
    "explainers": "explain:EXPLAINERS",
    "judges": "teachers.judges:JUDGES",
    "follow": "teachers:FOLLOW",
    "controls": "teachers:CONTROLS",
    "balances": "training.balance:BALANCES",
    "embeddings": "measure.transfer.embeddings:EMBEDDINGS",
    "optimizers": "training.optimizers:OPTIMIZERS",
    "schedules": "training.optimizers:SCHEDULES",
    "augments": "data.augment:AUGMENTS",
    "answers": "teachers:ANSWERS",
    "corruptions": "measure.corruptions:CORRUPTIONS",
    "formats": "deploy.exporters:EXPORTERS",
}
"""The registry of each kind, as `module:name` in this package."""
