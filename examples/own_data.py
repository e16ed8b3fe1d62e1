"""Your own images, as arrays.

python examples/own_data.py
"""

import numpy as np

import distilens

if __name__ == "__main__":
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    images = generator.integers(0, 80, (300, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):  # the class is the height of a bright band
        image[4 + 8 * label : 10 + 8 * label] += 150
    data = distilens.from_arrays(images, labels, classes=("top", "middle", "bottom"))
    student, log = distilens.distill("resnet8", None, data, ["ce"], settings={"epochs": 3, "batch_size": 32})
    print("validation accuracy", log[-1]["validation"]["accuracy"])
