"""Cutting equals masking, for every family; the optimizer follows the cut."""

import copy
import random

import pytest
import torch
from transformers import PreTrainedModel

from pruning.errors import InvalidPlan
from pruning.models.geometry import count_parameters, geometry_of, layer_widths, unpruned_plan
from pruning.plan import GONE, LayerPlan, PruningPlan
from pruning.surgery import apply_mask, apply_plan
from tests.pruning.tiny import DENSE, FAMILIES, make_tiny_model, random_ids

HEADS = {"mha": (4, 4), "gqa": (6, 3), "wide_gqa": (12, 3), "mqa": (6, 1)}


def random_plan(
    model: PreTrainedModel, *, seed: int = 3, share: float = 0.6, query_heads: bool = True
) -> PruningPlan:
    """Keeps a random share of each layer's groups, different in each layer, at least one."""
    draw = random.Random(seed)

    def some(groups: tuple[int, ...]) -> tuple[int, ...]:
        number = max(1, round(len(groups) * draw.uniform(share / 2, 1)))
        return tuple(sorted(draw.sample(groups, number)))

    def some_heads(num_groups: int, num_heads: int) -> tuple[tuple[int, ...], ...]:
        number = draw.randint(1, num_heads)
        return tuple(
            tuple(sorted(draw.sample(range(num_heads), number))) for _ in range(num_groups)
        )

    def some_channels(layer: LayerPlan) -> tuple[int, ...]:
        if not layer.experts:
            return some(layer.intermediate)
        # Torch multiplies matrices of experts in rows of whole 16 bytes.
        number = draw.randrange(4, len(layer.intermediate) + 1, 4)
        return tuple(sorted(draw.sample(layer.intermediate, number)))

    def some_experts(experts: tuple[int, ...]) -> tuple[int, ...]:
        fewest = min(len(experts), geometry.experts_per_token)
        return tuple(sorted(draw.sample(experts, draw.randint(fewest, len(experts)))))

    geometry, layers = geometry_of(model), []
    for layer, num_heads in zip(
        unpruned_plan(model).layers, geometry.query_heads_per_group, strict=True
    ):
        kv_groups = some(layer.kv_groups)
        heads = some_heads(len(kv_groups), num_heads) if query_heads else ()
        layers.append(
            LayerPlan(
                intermediate=some_channels(layer),
                kv_groups=kv_groups,
                query_heads=heads,
                experts=some_experts(layer.experts),
            )
        )
    return PruningPlan(layers=tuple(layers))


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


def loss(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids(), labels=random_ids()).loss


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_equals_masking(family: str, heads: tuple[int, int], tied: bool) -> None:
    model = make_tiny_model(
        family, num_attention_heads=heads[0], num_key_value_heads=heads[1], tied=tied
    )
    masked, base = copy.deepcopy(model), unpruned_plan(model)
    plan = random_plan(model)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    assert (logits(model) - logits(masked)).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_the_identity(family: str) -> None:
    model = make_tiny_model(family)
    before, base = logits(model), unpruned_plan(model)
    apply_plan(model, base, previous=base)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_the_parameters_that_the_cut_model_has(family: str) -> None:
    model = make_tiny_model(family)
    geometry, plan = geometry_of(model), random_plan(model)
    apply_plan(model, plan, previous=unpruned_plan(model))
    assert count_parameters(model) == geometry.num_parameters(plan)
    assert layer_widths(model) == geometry.widths(plan)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cost_of_a_group_does_not_change_with_a_cut(family: str) -> None:
    model = make_tiny_model(family)
    geometry, plan = geometry_of(model), random_plan(model, query_heads=False)
    apply_plan(model, plan, previous=unpruned_plan(model))
    assert geometry_of(model) == geometry
    again = random_plan(model)
    apply_plan(model, again, previous=unpruned_plan(model))
    assert count_parameters(model) == geometry.num_parameters(again)


def test_two_cuts_compose_to_the_second_plan(tiny_llama: PreTrainedModel) -> None:
    once, base = copy.deepcopy(tiny_llama), unpruned_plan(tiny_llama)
    first = random_plan(tiny_llama)
    second = PruningPlan(
        layers=tuple(
            LayerPlan(
                intermediate=layer.intermediate[::2],
                kv_groups=layer.kv_groups[:1],
                query_heads=(layer.query_heads[0][-1:],),
            )
            for layer in first.layers
        )
    )
    apply_plan(tiny_llama, first, previous=base)
    apply_plan(tiny_llama, second, previous=first)
    apply_plan(once, second, previous=base)
    assert torch.equal(logits(tiny_llama), logits(once))


def test_the_optimizer_keeps_the_moments_of_what_stays(tiny_llama: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-3)
    loss(tiny_llama).backward()
    optimizer.step()
    plan = random_plan(tiny_llama)
    kept = torch.tensor(plan.layers[0].intermediate)
    down = tiny_llama.get_submodule("model.layers.0.mlp.down_proj")
    moments = {k: v.clone() for k, v in optimizer.state[down.weight].items()}

    apply_plan(tiny_llama, plan, previous=unpruned_plan(tiny_llama), optimizer=optimizer)

    state = optimizer.state[down.weight]
    assert torch.equal(state["exp_avg"], moments["exp_avg"][:, kept])
    assert torch.equal(state["exp_avg_sq"], moments["exp_avg_sq"][:, kept])
    assert state["step"] == moments["step"]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in tiny_llama.parameters()
    }
    assert set(optimizer.state) == set(tiny_llama.parameters())


def test_training_after_a_cut_goes_on_as_under_a_mask(tiny_llama: PreTrainedModel) -> None:
    """The masked model, trained with the removed weights held at zero, takes the same path."""
    base, plan = unpruned_plan(tiny_llama), random_plan(tiny_llama)
    masked = copy.deepcopy(tiny_llama)
    losses: list[list[float]] = []
    for model, change in ((tiny_llama, apply_plan), (masked, apply_mask)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
        history = []
        for step in range(6):
            if step == 3 and change is apply_plan:
                apply_plan(model, plan, previous=base, optimizer=optimizer)
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            optimizer.step()
            history.append(value.item())
            if change is apply_mask and step >= 2:
                apply_mask(model, plan, previous=base)
        losses.append(history)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPlan(intermediate=(0,), kv_groups=(9,)), "removed before"),
        (LayerPlan(intermediate=(0, 999), kv_groups=(0,)), "removed before"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_any_cut(
    tiny_llama: PreTrainedModel, layer: LayerPlan, message: str
) -> None:
    base, before = unpruned_plan(tiny_llama), layer_widths(tiny_llama)
    plan = PruningPlan(layers=(base.layers[0], base.layers[1], layer))
    with pytest.raises(InvalidPlan, match=message):
        apply_plan(tiny_llama, plan, previous=base)
    assert layer_widths(tiny_llama) == before


def test_each_group_may_keep_other_query_heads(tiny_llama: PreTrainedModel) -> None:
    base = unpruned_plan(tiny_llama)
    heads = ((1,), (0,), (1,))
    plan = PruningPlan(
        layers=tuple(layer.model_copy(update={"query_heads": heads}) for layer in base.layers)
    )
    query = tiny_llama.get_submodule("model.layers.0.self_attn.q_proj").weight.detach().clone()
    apply_plan(tiny_llama, plan, previous=base)
    assert {w.num_attention_heads for w in layer_widths(tiny_llama)} == {3}
    cut = tiny_llama.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert torch.equal(cut.view(3, 8, -1), query.view(6, 8, -1)[[1, 2, 5]])


def test_query_heads_that_went_cannot_return() -> None:
    layer = LayerPlan(intermediate=(0,), kv_groups=(0, 1))
    fewer = layer.model_copy(update={"query_heads": ((0,), (2,))})
    with pytest.raises(InvalidPlan, match="removed before"):
        PruningPlan(layers=(layer,)).relative_to(PruningPlan(layers=(fewer,)))


def test_plans_from_before_query_heads_could_go_are_still_read() -> None:
    stored = '{"layers": [{"intermediate": [0, 2], "kv_groups": [1]}]}'
    assert PruningPlan.model_validate_json(stored).layers[0].query_heads == ()


@pytest.mark.parametrize("heads", [((0,),), ((0,), (1, 2))])
def test_groups_of_a_layer_keep_the_same_number_of_heads(
    heads: tuple[tuple[int, ...], ...],
) -> None:
    with pytest.raises(ValueError, match="as many heads"):
        LayerPlan(intermediate=(0,), kv_groups=(0, 1), query_heads=heads)


def without(plan: PruningPlan, *gone: int) -> PruningPlan:
    return PruningPlan(
        layers=tuple(GONE if i in gone else layer for i, layer in enumerate(plan.layers))
    )


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_layers_equals_masking_them(family: str, gone: tuple[int, ...]) -> None:
    model = make_tiny_model(family)
    masked, base, geometry = copy.deepcopy(model), unpruned_plan(model), geometry_of(model)
    plan = without(random_plan(model), *gone)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    assert (logits(model) - logits(masked)).abs().max() < 1e-5
    assert count_parameters(model) == geometry.num_parameters(plan)
    assert layer_widths(model) == geometry.widths(plan)
    assert geometry_of(model, plan).num_parameters(plan) == count_parameters(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shallower_model_generates_with_its_cache_as_without(family: str) -> None:
    model = make_tiny_model(family)
    base = unpruned_plan(model)
    apply_plan(model, without(base, 0), previous=base)
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    cached, plain = (model.generate(prompt, **settings, use_cache=use) for use in (True, False))
    assert cached.tolist() == plain.tolist()


def test_layers_go_in_two_cuts_as_in_one(tiny_llama: PreTrainedModel) -> None:
    once, base = copy.deepcopy(tiny_llama), unpruned_plan(tiny_llama)
    first = without(random_plan(tiny_llama), 1)
    second = without(first, 0, 1)
    apply_plan(tiny_llama, first, previous=base)
    apply_plan(tiny_llama, second, previous=first)
    apply_plan(once, second, previous=base)
    assert torch.equal(logits(tiny_llama), logits(once))


def test_the_optimizer_forgets_a_dropped_layer(tiny_llama: PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW(tiny_llama.parameters(), lr=1e-3)
    loss(tiny_llama).backward()
    optimizer.step()
    base = unpruned_plan(tiny_llama)
    apply_plan(tiny_llama, without(base, 1), previous=base, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in tiny_llama.parameters()}
    assert set(optimizer.state) == set(tiny_llama.parameters())


def test_a_plan_without_layers_is_refused(tiny_llama: PreTrainedModel) -> None:
    base = unpruned_plan(tiny_llama)
    with pytest.raises(InvalidPlan, match="keeps no attention block"):
        apply_plan(tiny_llama, without(base, 0, 1, 2), previous=base)
    assert len(layer_widths(tiny_llama)) == 3


def bare(
    plan: PruningPlan, *, attention: tuple[int, ...] = (), mlp: tuple[int, ...] = ()
) -> PruningPlan:
    """`plan` without the attention or MLP blocks of some layers."""
    changes = {i: {"kv_groups": (), "query_heads": ()} for i in attention}
    for i in mlp:
        changes.setdefault(i, {})["intermediate"] = ()
    return PruningPlan(
        layers=tuple(
            layer.model_copy(update=changes.get(i, {})) for i, layer in enumerate(plan.layers)
        )
    )


BLOCKS = {
    "first_attention": {"attention": (0,)},
    "mlp": {"mlp": (1,)},
    "both": {"attention": (0, 2), "mlp": (1, 2)},
}


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("family", DENSE)
def test_dropping_blocks_equals_masking_them(
    family: str, blocks: dict[str, tuple[int, ...]]
) -> None:
    model = make_tiny_model(family)
    masked, base, geometry = copy.deepcopy(model), unpruned_plan(model), geometry_of(model)
    plan = bare(random_plan(model), **blocks)
    apply_mask(masked, plan, previous=base)
    apply_plan(model, plan, previous=base)
    expected = logits(masked)
    assert (logits(model) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert count_parameters(model) == geometry.num_parameters(plan)
    assert layer_widths(model) == geometry.widths(plan)
    assert geometry_of(model, plan).num_parameters(plan) == count_parameters(model)
