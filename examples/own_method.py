"""Your own method: pull the student's spatial attention towards the teacher's, at the last feature map of both.

python examples/own_method.py
"""

import torch

import distilens
from distilens import Method
from distilens.models.grids import resized


class Attention(Method):
    """Match where the features are strong: `1 - cos(mean_k A_k^2 of the student, of the teacher)`."""

    needs = ("features:last",)

    def prepare(self, student, batch, answer):
        student.tap("last")
        return student

    def loss(self, batch, output, answer):
        ours, theirs = (features["last"].float().square().mean(1) for features in (output.features, answer.features))
        theirs = resized(theirs, tuple(ours.shape[-2:]))
        return 1 - torch.cosine_similarity(ours.flatten(1), theirs.flatten(1))


if __name__ == "__main__":
    data = distilens.load("digits")
    settings = {"epochs": 6, "batch_size": 32, "optimizer": "adamw:lr=0.003", "augment": "crop:padding=2,flip=none"}
    teacher, _ = distilens.distill("resnet14", None, data, ["ce"], settings=settings)
    student, log = distilens.distill("resnet8", teacher, data, ["ce", "kd", Attention()], settings=settings)
    print({name: round(value, 3) for name, value in log[-2]["terms"].items()}, log[-1]["validation"])
