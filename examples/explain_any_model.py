"""Explain your own network in several ways, and test whether the explanations can be trusted. Nothing is distilled.

python examples/explain_any_model.py
"""

import timm

import distilens
from distilens import Explainer, Explanation, Model


class Brightness(Explainer):
    """Your own explainer. This one looks only at the image, so the scores should reveal that it is useless."""

    def explain(self, model, images, target):
        logits = model.logits(images)
        return Explanation(images.mean(1), logits, logits.argmax(1) if target is None else target)


if __name__ == "__main__":
    data = distilens.load("digits:limit=600")
    network = timm.create_model("resnet10t", num_classes=len(data.classes))  # any module from images to logits
    model = Model(
        network, data.classes, size=data.size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), name="my network"
    )
    distilens.distill(
        model,
        None,
        data,
        ["ce"],
        settings={"epochs": 4, "batch_size": 32, "optimizer": "adamw:lr=0.003", "augment": "crop:padding=2,flip=none"},
    )

    gallery = distilens.gallery(model, data, ["gradcam", "ig:steps=8", Brightness()], images=16)
    header, rows = gallery.table()
    for line in [header, *rows]:
        print("".join(cell.ljust(26 if at == 0 else 16) for at, cell in enumerate(line)))
    print("", *gallery.findings(), gallery.save("maps/my network"), sep="\n")
