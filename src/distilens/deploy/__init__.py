"""The student alone: files that others run, the proof that they answer as the student does, and what they cost.

* `export` writes the files and verifies them; `exporters` are the formats, one file each.
* `predict` answers pictures with an exported file. It needs NumPy, Pillow and a runtime, and does not import torch.
* `bench` measures latency, memory and size in every runtime.

The names are listed in `__init__.pyi`; each is imported at its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
