"""distilens: train small image models under the guidance of large ones, and see what was passed on."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["measure"],
    submod_attrs={
        "api": ["distill"],
        "comparison": ["Comparison", "compare"],
        "core": ["Answer", "Batch", "Method", "Model", "Objective", "Output"],
        "data": ["Data", "from_arrays", "load"],
        "errors": ["UserError"],
        "explain": ["EXPLAINERS", "Explainer", "Explanation"],
        "gallery": ["Gallery", "gallery"],
        "methods": ["METHODS", "build_methods"],
        "models": ["MODELS", "build_model"],
        "models.saved": ["load_model", "save_model"],
        "prepare": ["prepare"],
        "recipe": ["Recipe", "Training"],
        "recipe_file": ["read_recipe"],
        "run": ["Run", "load_run"],
        "teachers": [
            "BestExplainedTeacher",
            "LiveTeacher",
            "MeanTeacher",
            "PermutedTeacher",
            "RandomMapTeacher",
            "StoredTeacher",
        ],
        "train": ["train"],
    },
)
