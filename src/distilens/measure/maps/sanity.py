"""Sanity checks of maps: do they depend on the model's weights, and are they stable under invisible noise?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from distilens.explain import Explanation
from distilens.foundation import randomness
from distilens.measure.maps.likeness import pearson, spearman
from distilens.models.model import Model
from distilens.models.objects import as_model, takes_modules
from distilens.models.taps import evaluating, find

Explain = Callable[[Model, Tensor, Tensor | None], Explanation]


@takes_modules
def randomised(
    model: Model, modules: Collection[str] | None = None, *, calibrate: Tensor | None = None, seed: int = 0
) -> Model:
    """A copy of a model with some modules reset to random weights; the model itself does not change.

    Modules with `reset_parameters` are reset by it. Parameters of other modules become random with their own standard deviation.
    Batch norms also lose their statistics; with images in `calibrate`, these are measured again, because activations would
    explode otherwise.

    Args:
        modules: paths in the network; None for all modules that have parameters of their own.
    """
    made = copy.deepcopy(model)
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else [], device_type="cuda"):
        # not the initial weights of a model that was trained with this seed
        torch.manual_seed(randomness.generator("random network", seed).initial_seed())
        for path in modules_with_parameters(made) if modules is None else modules:
            reset(find(made.network, path) if path else made.network)
        norms = [module for module in made.network.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        if calibrate is not None and norms:
            measure_again(made, norms, calibrate)
    return made.eval()


@torch.no_grad()
def reset(module: nn.Module) -> None:
    """Reset one module, without its inner modules."""
    again = getattr(module, "reset_parameters", None)
    if callable(again):
        again()  # a batch norm also resets its running statistics
        return
    for parameter in module.parameters(recurse=False):
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.copy_(torch.randn_like(parameter) * spread)


@torch.no_grad()
def measure_again(model: Model, norms: list[nn.modules.batchnorm._NormBase], images: Tensor) -> None:
    """Measure the statistics of batch norms on some images, with all other modules in eval mode."""
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.training = norm.track_running_stats
    model.logits(images)


def modules_with_parameters(model: Model) -> list[str]:
    """The paths of the modules with parameters of their own, in the order of the forward pass; modules not called come last."""
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
    target: Int[Tensor, "b ..."] | None = None,
    *,
    cascade: bool = False,
    seed: int = 0,
) -> dict[str, Float[Tensor, " b"]]:
    """Model randomisation test: a map that stays the same with random weights shows the image, not the model.

    The values are Spearman's rank correlations, per image, between the absolute maps of the model and of a copy with all modules
    reset, under the key `all`. With `cascade` there is one entry per module, from the top of the network down; modules above it
    are reset as well. Values are in [-1, 1]; near 0 is good. They are NaN if one of the maps is empty or constant.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3.
    """
    model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1])))
    explained = explainer(model, images, target)
    paths = modules_with_parameters(model)[::-1]
    steps = {path: paths[: number + 1] for number, path in enumerate(paths)} if cascade else {"all": paths}
    correlations = {}
    for name, modules in steps.items():
        changed = randomised(model, modules, calibrate=images, seed=seed)
        again = explainer(changed, images, explained.target)
        correlations[name] = spearman(explained.maps.abs(), again.maps.abs())
    return correlations


def stability(
    explainer: Explain,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, "b ..."] | None = None,
    *,
    noise: float = 0.02,
    samples: int = 2,
    seed: int = 0,
) -> Float[Tensor, " b"]:
    """Stability: the similarity of an image's map to the maps of copies with invisible noise.

    The value is the mean Pearson correlation between an image's map and the maps of `samples` copies with uniform noise of up to
    `noise` on every pixel, the same noise for every image. It is in [-1, 1]; higher is better. It is NaN if a map is constant.

    Source: after Alvarez-Melis and Jaakkola 2018 (arXiv 1806.08049) and Yeh et al. 2019 (arXiv 1901.09392), which take distances.
    """
    model = as_model(model, size=(int(images.shape[-2]), int(images.shape[-1])))
    explained = explainer(model, images, target)
    source = randomness.generator("stability", seed)
    correlations = []
    for _ in range(samples):
        change = noise * (2 * torch.rand(images.shape[1:], generator=source) - 1).to(images)
        again = explainer(model, (images + change).clamp(0, 1), explained.target)
        correlations.append(pearson(explained.maps, again.maps))
    return torch.stack(correlations).mean(0)
