"""Does a map depend on the model, and on nothing invisible?"""

import copy

import torch
from torch import nn

from distilens import EXPLAINERS, Explanation, build_model
from distilens.core import Model
from distilens.measure import randomisation, randomised, stability
from distilens.measure.maps.sanity import modules_with_parameters
from distilens.tasks import Segmentation

CLASSES = tuple("abcd")


def images(count: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def net() -> Model:
    torch.manual_seed(0)
    return build_model("resnet8", CLASSES, (32, 32)).eval()


def brightness(model: Model, pixels: torch.Tensor, target: torch.Tensor | None = None) -> Explanation:
    """An explainer that does not look at the model."""
    logits = model.logits(pixels).detach()
    return Explanation(pixels.mean(1), logits, logits.argmax(1))


def test_a_map_that_ignores_the_model_is_found_out():
    model = net()
    assert torch.allclose(randomisation(brightness, model, images())["all"], torch.ones(8), atol=1e-5)
    for part in ("ig:steps=4", "gradient:channels=sum"):
        found = randomisation(EXPLAINERS.build(part), model, images())["all"]
        assert found.abs().mean() < 0.6


def test_the_cascade_goes_from_the_top_down():
    model = net()
    paths = modules_with_parameters(model)
    assert paths[0] == "conv1"
    assert paths[-1] == "fc"
    found = randomisation(EXPLAINERS.build("ig:steps=2"), model, images(3), cascade=True)
    assert list(found) == paths[::-1]
    assert torch.equal(list(found.values())[-1], randomisation(EXPLAINERS.build("ig:steps=2"), model, images(3))["all"])


def test_randomising_changes_what_it_names_and_nothing_of_the_model():
    model = net().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    head = randomised(model, ["fc"])
    changed = {key for key, value in head.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == {"network.fc.weight", "network.fc.bias"}
    everything = randomised(model, calibrate=images())
    kept = {
        key
        for key, value in everything.state_dict().items()
        if torch.equal(value, state[key]) and value.is_floating_point() and not key.endswith((".weight", ".bias"))
    }
    assert not kept  # the statistics of batch norms too
    assert everything.logits(images()).abs().max() < 100
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    again = randomised(model, calibrate=images())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in everything.state_dict().items())


def test_a_model_is_not_given_back_the_weights_that_it_began_with():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    made = randomised(Model(network, CLASSES, size=(8, 8)), seed=0).network
    assert not torch.equal(made[0].weight, network[0].weight)
    assert not torch.equal(made[3].weight, network[3].weight)


def test_parameters_of_modules_that_cannot_reset_themselves_keep_their_spread():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 3, 8, 8) * 5)
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return self.head((x * self.token).mean((2, 3)))

    model = Model(Tokens(), CLASSES, size=(8, 8)).eval()
    made = randomised(model)
    assert not torch.equal(made.network.token, model.network.token)
    assert 3 < made.network.token.std().item() < 8
    assert not torch.equal(made.network.head.weight, model.network.head.weight)


def test_stability():
    model, pixels = net(), images()
    steady = stability(brightness, model, pixels)
    assert (steady > 0.99).all()
    rough = stability(lambda m, x, t=None: rough_map(m, x), model, pixels)
    assert (rough < 0.5).all()
    found = stability(EXPLAINERS.build("gradcam:tap=layer1"), model, pixels)
    assert ((found > 0.5) & (found <= 1)).all()
    assert torch.allclose(found[2:3], stability(EXPLAINERS.build("gradcam:tap=layer1"), model, pixels[2:3]), atol=1e-4)
    assert torch.allclose(stability(brightness, model, pixels, noise=0.0), torch.ones(8))


def rough_map(model: Model, pixels: torch.Tensor) -> Explanation:
    logits = model.logits(pixels).detach()
    return Explanation(pixels.mean(1) * 4096 % 1, logits, logits.argmax(1))


def test_the_copy_is_a_copy():
    model = net()
    made = randomised(model, [])
    assert made is not model
    assert torch.equal(made.logits(images()), copy.deepcopy(model).logits(images()))


def test_in_a_dense_task_the_places_are_those_of_the_untouched_model():
    torch.manual_seed(0)
    made = Model(nn.Conv2d(3, 3, 3, padding=1), Segmentation(("a", "b", "c")), size=(8, 8)).eval()
    pixels, asked = images(3)[..., :8, :8], []
    explainer = EXPLAINERS.build("gradient")

    def noting(model: Model, given: torch.Tensor, target: torch.Tensor | None) -> Explanation:
        asked.append(target)
        return explainer(model, given, target)

    correlations = randomisation(noting, made, pixels)["all"], stability(noting, made, pixels)
    own = made.task.explained(made.logits(pixels))
    for values in correlations:
        assert values.shape == (3,)
    assert [target is None for target in asked] == [True, False, True, False, False]
    assert all(torch.equal(target, own) for target in asked if target is not None)
