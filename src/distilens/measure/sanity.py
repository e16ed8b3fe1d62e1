"""Checks that a map has to pass before anything else is said of it: does it depend on the model, and on nothing invisible?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens import draws
from distilens.core import Model
from distilens.explain import Explanation
from distilens.measure.likeness import pearson, spearman
from distilens.models.objects import as_model, takes_modules
from distilens.taps import evaluating, find

Explain = Callable[[Model, Tensor, Tensor | None], Explanation]


@takes_modules
def randomised(
    model: Model, modules: Collection[str] | None = None, *, calibrate: Tensor | None = None, seed: int = 0
) -> Model:
    """A copy of a model with some of its modules as they would be before training; the model itself is left alone.

    Modules with `reset_parameters` are reset by it; parameters of others are drawn with their own deviation. Batch norms
    lose their statistics too; with `calibrate`, images, these are measured again, for otherwise activations explode.

    Args:
        modules: paths in the network; None for all that have parameters of their own.
    """
    made = copy.deepcopy(model)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else [], device_type="cuda"):
        torch.manual_seed(
            draws.generator("random network", seed).initial_seed()
        )  # not what a model of this seed began with
        for path in modules_with_parameters(made) if modules is None else modules:
            reset(find(made.network, path) if path else made.network)
        norms = [module for module in made.network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        if calibrate is not None and norms:
            measure_again(made, norms, calibrate)
    return made.eval()


@torch.no_grad()
def reset(module: nn.Module) -> None:
    """One module, not those inside it."""
    again = getattr(module, "reset_parameters", None)
    if callable(again):
        again()  # of a batch norm, the running statistics too
        return
    for parameter in module.parameters(recurse=False):
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.copy_(torch.randn_like(parameter) * spread)


@torch.no_grad()
def measure_again(model: Model, norms: list[nn.modules.batchnorm._NormBase], images: Tensor) -> None:
    """The statistics of batch norms, from some images, all other modules in eval mode."""
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.training = norm.track_running_stats
    model.logits(images)


def modules_with_parameters(model: Model) -> list[str]:
    """The paths of the modules that have parameters of their own, in the order of the forward (those it does not call last)."""
    owners = {
        module: path
        for path, module in model.network.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    called: list[str] = []

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        if owners[module] not in called:
            called.append(owners[module])

    handles = [module.register_forward_hook(note) for module in owners]
    with evaluating(model), torch.no_grad():
        try:
            model.logits(model.example())
        finally:
            for handle in handles:
                handle.remove()
    return [*called, *(path for path in owners.values() if path not in called)]


def randomisation(
    explainer: Explain,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"] | None = None,
    *,
    cascade: bool = False,
    seed: int = 0,
) -> dict[str, Float[Tensor, " b"]]:
    """Is the map still the same when the weights are random? Then it shows the image, not the model.

    The rank correlation (Spearman, of absolute values) between a model's maps and those of the model with all its modules
    reset, under `all`; with `cascade`, an entry a module, from the top of the network down, each with all above it reset too.
    In [-1, 1]; near 0 is good. NaN where one of the maps is empty or constant.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.
    """
    model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1])))
    explained = explainer(model, images, target)
    paths = modules_with_parameters(model)[::-1]
    steps = {path: paths[: number + 1] for number, path in enumerate(paths)} if cascade else {"all": paths}
    found = {}
    for name, some in steps.items():
        changed = randomised(model, some, calibrate=images, seed=seed)
        again = explainer(changed, images, explained.target)
        found[name] = spearman(explained.maps.abs(), again.maps.abs())
    return found


def stability(
    explainer: Explain,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"] | None = None,
    *,
    noise: float = 0.02,
    samples: int = 2,
    seed: int = 0,
) -> Float[Tensor, " b"]:
    """Is the map the same for an image that nobody can tell from it?

    The mean correlation (Pearson) between an image's map and those of `samples` copies with uniform noise of up to `noise` on
    every pixel, the same noise for every image. In [-1, 1]; higher is better. NaN where a map is constant.

    Source: after Alvarez-Melis and Jaakkola 2018 (arXiv 1806.08049) and Yeh et al. 2019 (arXiv 1901.09392), which take distances.
    """
    model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1])))
    explained = explainer(model, images, target)
    source = draws.generator("stability", seed)
    found = []
    for _ in range(samples):
        change = noise * (2 * torch.rand(images.shape[1:], generator=source) - 1).to(images)
        again = explainer(model, (images + change).clamp(0, 1), explained.target)
        found.append(pearson(explained.maps, again.maps))
    return torch.stack(found).mean(0)
