"""What is written comes back: to 11 bits in float16, to 256 levels in uint8, to the last bit where float32 is kept."""

import numpy as np
import pytest
import torch

from distilens.foundation.errors import UserError
from distilens.teachers.codecs import Byte, Full, Half, Largest, check_finite, codec_of
from distilens.teachers.needs import Need, levelled, unlevelled

CODECS = [Half(), Byte(), Full(), Largest(3, 10)]


def there_and_back(codec, values: torch.Tensor) -> torch.Tensor:
    """Through the bytes, as a file has them."""
    shape = tuple(values.shape[1:])
    records = np.zeros(len(values), np.dtype([("sum", "<u4"), *codec.fields(shape)]))
    codec.encode(values, records)
    found = codec.decode(np.frombuffer(records.tobytes(), records.dtype), torch.device("cpu"))
    assert found.shape == values.shape
    assert found.dtype == torch.float32
    return found


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# float16


@pytest.mark.parametrize("exponent", [-90, -30, -14, -1, 0, 1, 14, 30, 90])
def test_what_bfloat16_computed_comes_back_as_it_was(exponent):
    # bfloat16 has 8 bits, and a float16 keeps 11 of all that is not below 2^-28 of the record's largest value
    spread = torch.randint(-27, 1, (200, 50), generator=torch.Generator().manual_seed(1)).float().exp2()
    values = (drawn(200, 50).sign() * (drawn(200, 50, seed=2).abs() % 1 + 1) * spread * 2.0**exponent).bfloat16()
    assert torch.equal(there_and_back(Half(), values), values.float())


def test_float32_is_rounded_to_11_bits_of_each_value_however_unlike_they_are():
    values = drawn(500, 40) * torch.randint(-26, 1, (500, 40), generator=torch.Generator().manual_seed(3)).exp2()
    values = values * torch.linspace(-90, 90, 500).round().exp2()[:, None]  # records of any size
    found = there_and_back(Half(), values)
    largest = values.abs().amax(1, keepdim=True)
    kept = values.abs() >= largest * 2.0**-28
    assert kept.float().mean() > 0.9
    assert ((found - values).abs()[kept] <= values.abs()[kept] * 2.0**-11).all()
    assert (
        ((found - values).abs() <= largest * 2.0**-39).logical_or(kept).all()
    )  # what is smaller is not lost altogether
    assert (found - values).abs().max() > 0, "nothing was rounded, so nothing was measured"


@pytest.mark.parametrize("largest", [1e30, 1e10, 65520.0, 1.0, 6e-8, 1e-10, 1e-30])
@pytest.mark.parametrize("sign", [1, -1])
def test_neither_large_nor_small_values_overflow_or_vanish(largest, sign):
    values = sign * largest * torch.tensor([[1.0, 0.5, -0.001, 0.0, 1 / 3]])
    found = there_and_back(Half(), values)
    assert found.isfinite().all()
    assert ((found - values).abs() <= values.abs() * 2.0**-11).all()
    assert found[0, 3] == 0


@pytest.mark.parametrize(
    "largest",
    [3e38, 2.0**-120],
)
def test_any_float32_can_be_recorded(largest):
    values = largest * torch.tensor([[1.0, -0.5, 0.0]])
    found = there_and_back(Half(), values)
    assert ((found - values).abs() <= values.abs() * 2.0**-11).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_records_of_one_value_come_back(value):
    assert torch.equal(there_and_back(Half(), torch.full((3, 2, 4, 4), value)), torch.full((3, 2, 4, 4), value))
    assert torch.equal(there_and_back(Byte(), torch.full((3, 4, 4), value)), torch.full((3, 4, 4), value))


def test_grey_levels_are_exact_in_float16():
    values = torch.arange(256.0).view(1, 16, 16)
    assert torch.equal(there_and_back(Half(), values), values)


# uint8


@pytest.mark.parametrize("shift", [0.0, -1.0, 1000.0])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_bytes_are_within_half_a_level_and_keep_the_ends(shift, size):
    values = (drawn(50, 8, 8) + shift) * size
    found = there_and_back(Byte(), values)
    low, high = values.flatten(1).amin(1)[:, None, None], values.flatten(1).amax(1)[:, None, None]
    rounding = values.abs().amax() * 2.0**-22
    assert ((found - values).abs() <= (high - low) / 510 + rounding).all()
    assert torch.equal(found.flatten(1).amin(1), low[:, 0, 0])
    assert torch.allclose(found.flatten(1).amax(1), high[:, 0, 0], rtol=1e-6)
    assert len(found[0].unique()) > 20


def test_a_byte_is_one_byte():
    dtype = np.dtype([("sum", "<u4"), *Byte().fields((7, 7))])
    assert dtype.itemsize == 4 + 4 + 4 + 49


# the largest logits


@pytest.mark.parametrize(("classes", "top"), [(10, 1), (10, 3), (10, 9), (10, 10), (10, 25), (1000, 10), (2, 1)])
def test_the_probabilities_of_the_largest_and_the_mass_of_the_others_are_kept(classes, top):
    logits = drawn(40, classes) * 4
    before = logits.softmax(1)
    chosen = logits.topk(min(top, classes), dim=1).indices
    exact = unlevelled(*levelled(logits, top), classes)
    stored = there_and_back(Largest(top, classes), logits)
    assert torch.allclose(exact.softmax(1).gather(1, chosen), before.gather(1, chosen), rtol=1e-5, atol=0)
    assert torch.allclose(exact.gather(1, chosen), logits.gather(1, chosen), rtol=0, atol=0)
    for found, tolerance in ((exact, 1e-5), (stored, 2.0**-11 * float(logits.abs().max()) * 2.5)):
        after = found.softmax(1)
        assert torch.allclose(after.gather(1, chosen), before.gather(1, chosen), rtol=tolerance, atol=1e-6)
        assert torch.allclose(after.sum(1), torch.ones(40))
        rest = torch.ones_like(after).scatter(1, chosen, 0.0) > 0
        if rest.any():
            shared = after[rest].view(40, -1)
            assert torch.allclose(shared, shared[:, :1].expand_as(shared))  # the others are level
            assert torch.allclose(shared.sum(1), before[rest].view(40, -1).sum(1), rtol=tolerance, atol=1e-6)
            assert (shared.amax(1) <= before.gather(1, chosen).amin(1) * (1 + tolerance)).all()


def test_all_classes_asked_for_are_all_logits():
    logits = drawn(5, 10)
    for top in (10, 11, 1000):
        assert torch.equal(unlevelled(*levelled(logits, top), 10), logits)
        assert torch.equal(there_and_back(Largest(top, 10), logits), there_and_back(Half(), logits))


def test_very_certain_and_very_unlike_logits_have_finite_answers():
    logits = torch.tensor([[100.0, -100, -100, -100], [0.0, 0, 0, 0], [-1e4, -1e4, -1e4, 1e4]])
    for top in (1, 2, 4):
        found = there_and_back(Largest(top, 4), logits)
        assert found.isfinite().all()
        assert torch.allclose(found.softmax(1).amax(1), logits.softmax(1).amax(1), rtol=1e-2)
        assert torch.equal(found.argmax(1)[[0, 2]], logits.argmax(1)[[0, 2]])


@pytest.mark.parametrize(("classes", "bytes_each"), [(65_536, 2), (65_537, 4), (70_000, 4)])
def test_the_number_of_any_class_fits(classes, bytes_each):
    codec = Largest(2, classes)
    logits = torch.zeros(2, classes)
    logits[0, classes - 1], logits[1, 0] = 9.0, 9.0
    logits[:, classes // 2] = 5.0
    found = there_and_back(codec, logits)
    assert found.topk(2, dim=1).indices.tolist() == [[classes - 1, classes // 2], [0, classes // 2]]
    assert np.dtype(codec.fields((classes,))).fields["classes"][0].base.itemsize == bytes_each


# all of them


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_a_record_does_not_depend_on_those_beside_it(codec):
    shape = () if isinstance(codec, Full) else (10,)
    values = drawn(30, *shape) * (10.0 ** torch.arange(-15, 15)).view(-1, *[1] * len(shape))
    together = there_and_back(codec, values)
    alone = torch.cat([there_and_back(codec, values[row : row + 1]) for row in range(30)])
    assert torch.equal(together, alone)
    assert len(there_and_back(codec, values[:0])) == 0


def test_one_number_an_image_is_kept_to_the_last_bit():
    values = drawn(100) * 1e-20
    assert torch.equal(there_and_back(Full(), values), values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 3, 2, 2)])
def test_nothing_that_is_no_number_is_recorded_and_the_images_are_named(bad, shape):
    values, index = torch.zeros(shape), np.array([10, 20, 30, 40, 50, 60])
    check_finite(values, Need.parse("logits"), index)
    values.view(6, -1)[1, -1] = values.view(6, -1)[4, 0] = bad
    with pytest.raises(UserError, match=r"teacher's logits have NaN or infinite values .* index 20, 50: not recorded"):
        check_finite(values, Need.parse("logits"), index)


@pytest.mark.parametrize(
    ("need", "maps", "kind"),
    [
        ("logits", "float16", Half),
        ("logits", "uint8", Half),
        ("logits:top=2", "uint8", Largest),
        ("features:layer1", "uint8", Half),
        ("maps:gradcam", "float16", Half),
        ("maps:gradcam", "uint8", Byte),
        ("scores:confidence", "uint8", Full),
    ],
)
def test_only_maps_are_ever_bytes(need, maps, kind):
    assert type(codec_of(Need.parse(need), (5,), maps=maps)) is kind
