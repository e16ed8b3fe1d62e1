"""Your own loop: two students teach each other (deep mutual learning, Zhang et al. 2018). A list of methods cannot express this.

The parts (data, models, methods, objective) are those of distilens; only the loop is yours.

python examples/own_loop.py
"""

import torch

import distilens
from distilens import Answer, Objective, build_methods, build_model
from distilens.data.augment import crop
from distilens.data.pipeline import Batches

if __name__ == "__main__":
    torch.manual_seed(0)
    data = distilens.load("digits:limit=600")
    students = [build_model(name, data.classes, data.size) for name in ("resnet8", "vgg8")]
    objectives = [Objective(student, build_methods(["ce", "kd:temperature=1"])).train() for student in students]
    optimizers = [torch.optim.AdamW(objective.parameters(), lr=2e-3) for objective in objectives]
    batches = Batches(data.train, 64, augment=crop(padding=2, flip="none"))
    for epoch in range(2):
        for batch in batches.epoch(epoch, epochs=2):
            with torch.no_grad():
                logits = [student.logits(batch.images) for student in students]
            for objective, optimizer, theirs in zip(objectives, optimizers, reversed(logits), strict=True):
                loss = sum(objective(batch, Answer(logits=theirs)).values())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for student in students:
        predicted = distilens.measure.predict(student, Batches(data.validation, 100))
        print(student.name, distilens.measure.accuracy(predicted, torch.from_numpy(data.validation.labels)))
