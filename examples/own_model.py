"""Your own network as the student of a larger one. Any torch module works.

python examples/own_model.py
"""

from torch import nn

import distilens


def small(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


if __name__ == "__main__":
    data = distilens.load("digits")
    settings = {"epochs": 6, "batch_size": 32, "optimizer": "adamw:lr=0.01", "augment": "crop:padding=2,flip=none"}
    teacher, _ = distilens.distill("resnet8", None, data, ["ce"], settings=settings)
    network = small(len(data.classes))
    student, log = distilens.distill(network, teacher, data, settings=settings)
    print("validation accuracy", [round(row["validation"]["accuracy"], 3) for row in log if "validation" in row])
    print("your own module, trained:", sum(parameter.numel() for parameter in network.parameters()), "parameters")
