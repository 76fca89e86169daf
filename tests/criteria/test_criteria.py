"""The importance of patches, from one block's attention."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import reference
import torch
from small_models import create
from torch import Tensor

from entropatch import (
    BlockAttention,
    ClassAttention,
    Criterion,
    Mix,
    Product,
    PruneConfig,
    Random,
    Renyi,
    UnsupportedModelError,
    kernels,
    prune_,
)
from entropatch.tokens import select


def block_attention(
    batch: int = 2, patches: int = 9, prefix: int = 2, block: int = 0, dtype: torch.dtype = torch.float64
) -> BlockAttention:
    q, k, v = torch.randn(3, batch, 3, prefix + patches, 4, dtype=dtype).mul(2)
    return BlockAttention(q, k, v, scale=0.7, num_prefix_tokens=prefix, has_class_token=prefix > 0, block=block)


def images(attention: BlockAttention) -> zip[tuple[np.ndarray, np.ndarray]]:
    return zip(attention.q.numpy(), attention.k.numpy(), strict=True)


# --- Renyi -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0.5, 1, 1.0001, 2.0, 7.0, math.inf])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_renyi_equals_the_definition(order: float, prefix: int) -> None:
    attention = block_attention(prefix=prefix)
    got = Renyi(order).importance(attention)
    expected = [reference.renyi_importance(q, k, order, 0.7, prefix) for q, k in images(attention)]
    assert got.shape == (2, 9)
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_renyi_keeps_the_patches_the_definition_keeps(order: float) -> None:
    attention = block_attention(batch=4, patches=40, dtype=torch.float32)
    kept = select(Renyi(order).importance(attention), 28)
    for places, (q, k) in zip(kept.tolist(), images(attention), strict=True):
        assert places == reference.kept_places(reference.renyi_importance(q, k, order, 0.7, 2), 28)


def test_renyi_averages_the_entropies_of_heads_not_the_heads() -> None:
    """A patch whose heads each look hard at one, but each at another, patch is certain in every head."""
    far = 50.0
    q = torch.full((1, 2, 3, 1), far)
    k = torch.zeros(1, 2, 3, 1)
    k[0, 0, 0], k[0, 1, 2] = far, far
    importance = Renyi(1.0).importance(BlockAttention(q, k, k, scale=1.0))
    assert importance.abs().max() < 1e-6  # of the mean head it would be -log 2


def test_renyi_prefers_the_focused_patch() -> None:
    q = torch.tensor([[[[0.0], [9.0], [1.0]]]])
    k = torch.tensor([[[[1.0], [0.0], [-1.0]]]])
    assert Renyi(2.0).importance(BlockAttention(q, k, k)).argmax().item() == 1


def test_renyi_checks_its_order() -> None:
    assert Renyi(1).order == 1.0
    assert Renyi().order == 2.0
    for order, error, message in (
        (0, ValueError, "ranks nothing"),
        (math.nan, ValueError, "NaN"),
        ("2", TypeError, "'2'"),
    ):
        with pytest.raises(error, match=message):
            Renyi(order)  # type: ignore[arg-type]


# --- ClassAttention ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_class_attention_is_the_head_mean_of_the_class_row(prefix: int) -> None:
    attention = block_attention(prefix=prefix)
    expected = [reference.evit_importance(q, k, 0.7, prefix) for q, k in images(attention)]
    torch.testing.assert_close(ClassAttention().importance(attention), torch.tensor(expected, dtype=torch.float64))


def test_class_attention_needs_a_class_token() -> None:
    assert ClassAttention.needs_class_token
    assert not Renyi.needs_class_token
    assert not Random.needs_class_token
    with pytest.raises(ValueError, match="needs a class token"):
        ClassAttention().importance(block_attention(prefix=0))


# --- Random ------------------------------------------------------------------------------------------------------


def random_scores(seed: int | None, *, block: int = 3, batch: int = 1, patches: int = 40) -> Tensor:
    q = torch.zeros(batch, 1, 1 + patches, 1)
    attention = BlockAttention(q, q, q, num_prefix_tokens=1, has_class_token=True, block=block)
    return Random(seed).importance(attention)


def test_a_seed_fixes_the_scores_apart_from_the_global_generator() -> None:
    torch.manual_seed(1)
    first = random_scores(7, batch=2)
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(random_scores(7, batch=2), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)  # a draw leaves the generator where it was


def test_scores_depend_on_seed_block_image_and_patch_alone() -> None:
    scores = random_scores(7, batch=3, patches=50)
    torch.testing.assert_close(random_scores(7, batch=2, patches=30), scores[:2, :30], rtol=0, atol=0)
    for other in (random_scores(8, batch=3, patches=50), random_scores(7, block=6, batch=3, patches=50)):
        assert not torch.equal(other, scores)
    assert not torch.equal(scores[0], scores[1])
    assert scores.unique().numel() == scores.numel()


def test_without_a_seed_the_global_generator_draws() -> None:
    torch.manual_seed(1)
    first, second = random_scores(None), random_scores(None)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(random_scores(None), first)
    torch.manual_seed(2)
    assert not torch.equal(random_scores(None), first)


def test_seeded_scores_are_uniform_and_independent() -> None:
    """Over many seeds, blocks and images: each patch is kept half of the time, and no two draws go together."""
    draws = torch.cat(
        [random_scores(seed, block=block, batch=4) for seed in range(100) for block in (0, 1, 3, 6, 9)]
    ).double()
    count, n = draws.shape  # 2000 draws of 40 patches
    kept = torch.zeros_like(draws).scatter(1, select(draws, n // 2), 1.0).mean(0)
    assert (kept - 0.5).abs().max() < 5 * 0.5 / math.sqrt(count)

    uniform = draws / 2**31
    assert uniform.min() >= 0
    assert uniform.max() <= 1
    histogram = torch.histc(uniform.flatten(), 20, 0, 1) / draws.numel()
    assert (histogram - 0.05).abs().max() < 5 * math.sqrt(0.05 * 0.95 / draws.numel())

    for rows, samples in ((draws, n), (draws.T, count)):  # between draws, and between patches
        correlation = torch.corrcoef(rows.argsort(1).argsort(1).double()).fill_diagonal_(0)
        assert correlation.abs().max() < 6.5 / math.sqrt(samples)
        assert correlation.std() < 1.1 / math.sqrt(samples)


@pytest.mark.parametrize("seed", [1.5, "7", True, (1,)])
def test_seeds_that_are_not_integers_are_refused(seed) -> None:
    with pytest.raises(TypeError, match="seed must be an integer, or None") as error:
        Random(seed)
    assert repr(seed) in str(error.value)


# --- a criterion of one's own: one class, nothing else ------------------------------------------------------------


@dataclass(frozen=True)
class KeyLength(Criterion):
    power: float = 2.0
    heads: tuple[int, ...] = (0, 1)
    note: str | None = None

    def importance(self, attention: BlockAttention) -> Tensor:
        keys = attention.k[:, list(self.heads), attention.num_prefix_tokens :]
        return keys.norm(dim=-1, p=self.power).mean(1)


class Undecorated(Criterion):
    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.k[:, 0, attention.num_prefix_tokens :, 0]


@dataclass(frozen=True)
class Misnamed(Criterion):
    name: str = "x"

    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.k[:, 0, attention.num_prefix_tokens :, 0]


@dataclass(frozen=True)
class Derived(Criterion):
    width: int = 2
    doubled: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.width)

    def importance(self, attention: BlockAttention) -> Tensor:
        return attention.k[:, 0, attention.num_prefix_tokens :, 0]


def test_a_criterion_of_ones_own_scores() -> None:
    attention = block_attention()
    got = KeyLength(math.inf).importance(attention)
    keys = attention.k[:, :2, 2:].numpy()
    torch.testing.assert_close(got, torch.from_numpy(abs(keys).max(-1).mean(1)))


@pytest.mark.parametrize(
    "criterion",
    [
        Renyi(2.0),
        Renyi(0.123456789012345),
        Renyi(math.inf),
        ClassAttention(),
        Random(3),
        Random(None),
        KeyLength(),
        KeyLength(math.inf, heads=(2,), note="infinity"),
        KeyLength(-math.inf),
        Derived(5),
    ],
)
def test_criteria_save_as_json_and_come_back_equal(criterion: Criterion) -> None:
    text = json.dumps(criterion.to_dict(), allow_nan=False)
    again = Criterion.from_dict(json.loads(text))
    assert again == criterion
    assert type(again) is type(criterion)
    assert hash(again) == hash(criterion)
    assert PruneConfig.from_json(PruneConfig(criterion=criterion).to_json()).criterion == criterion


def test_what_cannot_come_back_equal_is_not_saved() -> None:
    with pytest.raises(TypeError, match=r"Undecorated must be a dataclass to be saved.*@dataclass\(frozen=True\)"):
        Undecorated().to_dict()
    with pytest.raises(TypeError, match=r"Misnamed cannot be saved.*'name'"):
        Misnamed().to_dict()


def test_a_criterion_without_importance_is_refused() -> None:
    class Unfinished(Criterion):
        pass

    with pytest.raises(TypeError, match="importance"):
        Unfinished()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "Entropy"}, r"one of .*ClassAttention.*KeyLength.*Renyi.*but got 'Entropy'; import the module"),
        ({"order": 2.0}, r"one of .*Renyi.*but got None"),
        ({"name": ["Renyi"]}, r"but got \['Renyi'\]"),
        ({"name": "Renyi", "alpha": 2.0}, r"Renyi has the fields order, but got alpha"),
        ({"name": "ClassAttention", "order": 2.0}, r"ClassAttention has the fields \(none\), but got order"),
        ({"name": "Derived", "doubled": 2}, r"Derived has the fields width, but got doubled"),
        ({"name": "Renyi", "order": -1}, r"greater than 0"),
        ("Renyi", r'object such as \{"name": "Renyi", "order": 2\.0\}, but got \'Renyi\''),
        (None, r"object such as .*but got None"),
    ],
)
def test_unknown_names_and_fields_are_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Criterion.from_dict(data)


def test_private_criteria_are_not_offered() -> None:
    class _Hidden(Criterion):
        pass

    with pytest.raises(ValueError, match="ClassAttention") as error:
        Criterion.from_dict({"name": "?"})
    assert "_Hidden" not in str(error.value)


def test_a_criterion_must_not_take_the_name_of_one_of_ours():
    with pytest.raises(TypeError, match="must not be called Renyi, as entropatch's own"):
        type("Renyi", (Criterion,), {"__module__": "elsewhere"})
    assert Criterion.from_dict({"name": "Renyi", "order": 2.0}) == Renyi(2.0)
    for _ in range(2):  # a notebook's cell runs again
        type("Repeated", (Criterion,), {"__module__": "elsewhere"})


# --- Mix and Product ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, 0.3, 1.0])
def test_a_mixture_is_the_weighted_mean_of_standardised_scores(weight: float) -> None:
    attention = block_attention()
    got = Mix(ClassAttention(), Renyi(1.0), weight).importance(attention)
    for row, (q, k) in zip(got, images(attention), strict=True):
        a = reference.standardised(reference.evit_importance(q, k, 0.7, 2))
        b = reference.standardised(reference.renyi_importance(q, k, 1.0, 0.7, 2))
        expected = [weight * x + (1 - weight) * y for x, y in zip(a, b, strict=True)]
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64))


def test_scores_all_alike_count_nothing_in_a_mixture() -> None:
    q = torch.zeros(2, 3, 6, 4)
    attention = BlockAttention(q, q, q, num_prefix_tokens=1, has_class_token=True)
    own = Random(3).importance(attention)
    mixed = Mix(Renyi(2.0), Random(3)).importance(attention)
    assert not mixed.isnan().any()
    assert torch.equal(mixed.argsort(1), own.argsort(1))


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
def test_a_product_ranks_by_class_attention_over_perplexity(order: float) -> None:
    attention = block_attention(batch=4, patches=30)
    got = Product(ClassAttention(), Renyi(order)).importance(attention)
    for row, (q, k) in zip(got, images(attention), strict=True):
        share = reference.evit_importance(q, k, 0.7, 2)
        entropy = reference.renyi_importance(q, k, order, 0.7, 2)
        product = [a * math.exp(minus) for a, minus in zip(share, entropy, strict=True)]
        away = row.double() - torch.tensor(product).double().log()
        torch.testing.assert_close(away, away.mean().expand_as(away), atol=1e-5, rtol=0)
        assert select(row[None], 12)[0].tolist() == reference.kept_places(product, 12)


def test_a_product_is_finite_where_a_share_is_none() -> None:
    q = torch.zeros(1, 1, 4, 1)
    q[0, 0, 0], k = 1.0, torch.tensor([0.0, 0.0, -1e6, 1.0])[None, None, :, None]
    attention = BlockAttention(q, k, k, scale=1.0, num_prefix_tokens=1, has_class_token=True)
    assert Product(ClassAttention(), Renyi(2.0)).importance(attention).isfinite().all()


def test_a_mixture_needs_a_class_token_where_one_of_its_criteria_does() -> None:
    for kind in (Mix, Product):
        assert kind(Renyi(1.0), kind(Renyi(2.0), ClassAttention())).needs_class_token
        assert not kind(Renyi(1.0), Random()).needs_class_token
    model = create("siglip")
    with pytest.raises(UnsupportedModelError, match=r"Mix .*needs a class token"):
        prune_(model, criterion=(Renyi(2.0), Mix(Renyi(1.0), ClassAttention()), Renyi(2.0)))


def test_a_mixture_checks_its_fields() -> None:
    fields: list[tuple[Any, type[Exception], str]] = [
        ((Renyi(1.0), Renyi), TypeError, "b must be a Criterion"),
        (("evit", Renyi(1.0)), TypeError, "a must be a Criterion"),
        ((Renyi(1.0), Renyi(2.0), 1.5), ValueError, r"weight must lie in \[0, 1\]"),
        ((Renyi(1.0), Renyi(2.0), math.nan), ValueError, "nan"),
        ((Renyi(1.0), Renyi(2.0), "1"), TypeError, "weight must be a number"),
    ]
    for given, error, message in fields:
        with pytest.raises(error, match=message):
            Mix(*given)
    with pytest.raises(TypeError, match="b must be a Criterion"):
        Product(Renyi(1.0), 2.0)  # type: ignore[arg-type]


def test_class_attention_and_an_entropy_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entropies come with the block's output, and the class token's row is one row."""
    calls: list[str] = []
    for name in ("attend_with_entropy", "attention_entropy"):
        own = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, own=own, name=name: (calls.append(name), own(*args))[1])
    for criterion in (Mix(ClassAttention(), Renyi(2.0)), Product(Renyi(2.0), ClassAttention())):
        attention = block_attention()
        criterion.importance(attention)
        attention.output()
    assert calls == ["attend_with_entropy"] * 2


def test_a_mixture_is_a_criterion_like_others() -> None:
    assert Mix(ClassAttention(), Renyi(math.inf), 0.25).label == "0.25 × class attention + 0.75 × Rényi, order ∞"
    assert PruneConfig(criterion=Product(ClassAttention(), Renyi(2.0))) == PruneConfig(method="class-renyi-2")
    assert PruneConfig(criterion=Product(ClassAttention(), Renyi(1.0))).label == "class attention × Shannon"
