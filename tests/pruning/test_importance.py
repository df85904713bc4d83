"""Scores of groups and blocks, checked against gradients taken by hand."""

from typing import get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.errors import InvalidData
from pruning.importance.fusion import fused_importance
from pruning.importance.measure import measure_importance
from pruning.models.adapter import adapter_for
from pruning.recipe_parts.method import Importance, ImportanceKind
from tests.pruning.tiny import FAMILIES, make_tiny_model, random_ids

TAYLOR = Importance(kind="taylor")
BATCHES = [random_ids(seed=1), random_ids(seed=2)]


def test_query_heads_fold_onto_the_kv_head_they_share() -> None:
    """Scores 0..5 of six query heads over two KV heads make [0+1+2, 3+4+5], not [0+2+4, 1+3+5]."""
    model = make_tiny_model("llama", num_attention_heads=6, num_key_value_heads=2)
    adapter = adapter_for(model.config)
    layer = adapter.layers(model)[0]
    query = next(
        tensor
        for tensor in adapter.tensors(layer, "kv_group")
        if tensor.parameter is layer.get_submodule("self_attn.q_proj").weight
    )
    rows = torch.arange(6.0).repeat_interleave(adapter.head_dim)
    values = (rows / query.parameter.shape[1] / adapter.head_dim)[:, None].expand_as(
        query.parameter
    )
    torch.testing.assert_close(query.sum_by_group(values), torch.tensor([3.0, 12.0]))


def test_taylor_sums_the_absolute_products_of_each_micro_batch() -> None:
    model = make_tiny_model("llama")
    scores = measure_importance(model, BATCHES, TAYLOR).layers[1]
    expected_F, expected_K = torch.zeros(64), torch.zeros(3)
    for ids in BATCHES:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        mlp = model.get_submodule("model.layers.1.mlp")
        for linear, dim in ((mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0)):
            expected_F += (linear.weight * linear.weight.grad).abs().sum(dim)
        expected_F += (mlp.gate_proj.bias * mlp.gate_proj.bias.grad).abs()
        expected_F += (mlp.up_proj.bias * mlp.up_proj.bias.grad).abs()
        attention = model.get_submodule("model.layers.1.self_attn")
        for linear, dim in (
            (attention.q_proj, 1),
            (attention.k_proj, 1),
            (attention.v_proj, 1),
            (attention.o_proj, 0),
        ):
            expected_K += (linear.weight * linear.weight.grad).abs().sum(dim).view(3, -1).sum(1)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            expected_K += (linear.bias * linear.bias.grad).abs().view(3, -1).sum(1)
    torch.testing.assert_close(scores.intermediate, expected_F.detach())
    torch.testing.assert_close(scores.kv_groups, expected_K.detach())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_neox"])
def test_blocks_are_compared_on_the_residual_stream(family: str) -> None:
    model = make_tiny_model(family)
    with torch.no_grad():
        hidden = model(input_ids=BATCHES[0], output_hidden_states=True).hidden_states
    scores = measure_importance(model, BATCHES[:1], TAYLOR)
    adapter = adapter_for(model.config)
    captured: dict[str, torch.Tensor] = {}
    layer = adapter.layers(model)[1]
    handle = layer.get_submodule(adapter.family.mlp_input).register_forward_pre_hook(
        lambda _, args: captured.update(middle=args[0])
    )
    with torch.no_grad():
        model(input_ids=BATCHES[0])
    handle.remove()

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return (1 - torch.cosine_similarity(a, b, dim=-1)).mean().item()

    expected = distance(hidden[1], captured["middle"])
    assert scores.layers[1].attention_importance == pytest.approx(expected, abs=1e-6)
    expected = distance(captured["middle"], hidden[2])
    assert scores.layers[1].mlp_importance == pytest.approx(expected, abs=1e-6)
    expected = distance(hidden[1], hidden[2])
    assert scores.layers[1].layer_importance == pytest.approx(expected, abs=1e-6)


def test_parallel_blocks_are_each_compared_with_what_they_read() -> None:
    model = make_tiny_model("gpt_neox")
    layer = adapter_for(model.config).layers(model)[1]
    captured: dict[str, torch.Tensor] = {}
    handles = [
        layer.register_forward_pre_hook(lambda _, args: captured.update(stream=args[0])),
        layer.get_submodule("attention").register_forward_hook(
            lambda _, _args, output: captured.update(attention=output[0])
        ),
        layer.get_submodule("mlp").register_forward_hook(
            lambda _, _args, output: captured.update(mlp=output)
        ),
    ]
    with torch.no_grad():
        model(input_ids=BATCHES[0])
    for handle in handles:
        handle.remove()
    scores = measure_importance(model, BATCHES[:1], TAYLOR).layers[1]
    stream = captured["stream"]
    for found, written in (
        (scores.attention_importance, captured["attention"]),
        (scores.mlp_importance, captured["mlp"]),
        (scores.layer_importance, captured["attention"] + captured["mlp"]),
    ):
        expected = (1 - torch.cosine_similarity(stream, stream + written, dim=-1)).mean().item()
        assert found == pytest.approx(expected, abs=1e-6)


def test_a_block_that_adds_nothing_has_no_importance(tiny_llama: PreTrainedModel) -> None:
    torch.nn.init.zeros_(tiny_llama.get_submodule("model.layers.1.mlp.down_proj").weight)
    scores = measure_importance(tiny_llama, BATCHES, TAYLOR)
    assert scores.layers[1].mlp_importance == pytest.approx(0, abs=1e-6)
    assert scores.layers[1].attention_importance > 0.01


def test_magnitude_is_the_squared_norm_of_the_group(tiny_llama: PreTrainedModel) -> None:
    scores = measure_importance(tiny_llama, BATCHES, Importance(kind="magnitude")).layers[0]
    mlp = tiny_llama.get_submodule("model.layers.0.mlp")
    squares = mlp.gate_proj.weight.square() + mlp.up_proj.weight.square()
    expected = squares.sum(1) + mlp.down_proj.weight.square().sum(0)
    torch.testing.assert_close(scores.intermediate, expected.detach())


def test_measuring_leaves_the_model_as_it_was(tiny_llama: PreTrainedModel) -> None:
    tiny_llama.train()
    tiny_llama.get_submodule("lm_head").weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in tiny_llama.named_parameters()}
    measure_importance(tiny_llama, BATCHES, TAYLOR)
    for name, parameter in tiny_llama.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert parameter.requires_grad is (name != "model.embed_tokens.weight")
    assert tiny_llama.training


def test_scores_are_fp32_on_a_bfloat16_model(tiny_llama: PreTrainedModel) -> None:
    scores = measure_importance(tiny_llama.to(torch.bfloat16), BATCHES, TAYLOR).layers[0]
    assert scores.intermediate.dtype == scores.kv_groups.dtype == torch.float32
    assert scores.intermediate.min() > 0


def test_no_text_is_an_error(tiny_llama: PreTrainedModel) -> None:
    with pytest.raises(InvalidData, match="no calibration text"):
        measure_importance(tiny_llama, [], TAYLOR)


def test_second_order_sums_squared_products_of_each_micro_batch() -> None:
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    first, mixed = torch.zeros(64), torch.zeros(64)
    for ids in BATCHES:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        mlp = model.get_submodule("model.layers.1.mlp")
        for linear, dim in ((mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0)):
            change = (linear.weight * linear.weight.grad).detach()
            first += change.square().sum(dim)
            mixed += (change - change.square() / 2).abs().sum(dim)
    for order, expected_F in (("second", first), ("mix", mixed)):
        scores = measure_importance(model, BATCHES, Importance(kind="taylor", taylor_order=order))
        torch.testing.assert_close(scores.layers[1].intermediate, expected_F)


def test_fused_importance_weighs_vectors_and_elements_alike() -> None:
    model = make_tiny_model("llama", attention_bias=False, mlp_bias=False)
    vectors, elements = torch.zeros(3, 64), torch.zeros(3, 64)
    for ids in BATCHES:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        for index, layer in enumerate(model.model.layers):
            mlp = layer.mlp
            for linear, dim in ((mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0)):
                change = (linear.weight * linear.weight.grad).detach()
                vectors[index] += change.sum(dim).abs()
                elements[index] += (change - change.square() / 2).abs().sum(dim)
    expected = vectors / (2 * vectors.mean()) + elements / (2 * elements.mean())
    scores = measure_importance(model, BATCHES, Importance(kind="fused"))
    found = torch.stack([layer.intermediate for layer in scores.layers])
    torch.testing.assert_close(found, expected)


def test_the_fusion_is_where_descending_on_the_uncertainties_ends() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.rand(50, generator=draw) * scale for scale in (3.0, 0.01))
    logs = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        one, two = (2 * logs).exp()
        (first / (2 * one) + second / (2 * two)).mean().add(logs.sum()).backward()
        optimizer.step()
    one, two = (2 * logs.detach()).exp()
    expected = first / (2 * one) + second / (2 * two)
    torch.testing.assert_close(fused_importance(first, second), expected, rtol=1e-3, atol=1e-3)


def captured_inputs(model: PreTrainedModel, module: str) -> np.ndarray:
    """What enters a module over all batches, fp64 [N, C]."""
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        for ids in BATCHES:
            model(input_ids=ids)
    handle.remove()
    return torch.cat(rows).double().numpy()


def test_fluctuation_is_the_variance_times_the_squared_norm_squared_for_attention() -> None:
    model = make_tiny_model("qwen2", num_attention_heads=6, num_key_value_heads=2)
    scores = measure_importance(model, BATCHES, Importance(kind="fluctuation")).layers[1]
    down = captured_inputs(model, "model.layers.1.mlp.down_proj")
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight.detach().double().numpy()
    expected = down.var(axis=0, ddof=1) * (weight**2).sum(axis=0)
    np.testing.assert_allclose(scores.intermediate.numpy(), expected, rtol=1e-5)
    heads = captured_inputs(model, "model.layers.1.self_attn.o_proj")
    weight = model.get_submodule("model.layers.1.self_attn.o_proj").weight.detach().double().numpy()
    channels = (heads.var(axis=0, ddof=1) * (weight**2).sum(axis=0)) ** 2
    np.testing.assert_allclose(
        scores.query_heads.numpy(), channels.reshape(2, 3, 8).sum(2), rtol=1e-5
    )
    np.testing.assert_allclose(scores.kv_groups.numpy(), channels.reshape(2, 24).sum(1), rtol=1e-5)
    assert scores.deviations["kv_group"] == pytest.approx(24 * channels.std(), rel=1e-5)


def test_wanda_weighs_each_weight_by_the_norm_of_its_input(tiny_llama: PreTrainedModel) -> None:
    scores = measure_importance(tiny_llama, BATCHES, Importance(kind="wanda")).layers[0]
    rows = captured_inputs(tiny_llama, "model.layers.0.mlp.down_proj")
    weight = tiny_llama.get_submodule("model.layers.0.mlp.down_proj").weight.detach().numpy()
    expected = np.abs(weight).sum(axis=0) * np.linalg.norm(rows, axis=0)
    np.testing.assert_allclose(scores.intermediate.numpy(), expected, rtol=1e-5)


def test_activation_averages_within_a_sequence_before_squaring(tiny_llama: PreTrainedModel) -> None:
    scores = measure_importance(tiny_llama, BATCHES, Importance(kind="activation")).layers[2]
    rows = captured_inputs(tiny_llama, "model.layers.2.mlp.down_proj").reshape(4, 16, -1)
    expected = (np.abs(rows).mean(axis=1) ** 2).sum(axis=0)
    np.testing.assert_allclose(scores.intermediate.numpy(), expected, rtol=1e-5)


def test_random_importance_is_drawn_from_the_text(tiny_llama: PreTrainedModel) -> None:
    random = Importance(kind="random")
    first, again, other = (
        measure_importance(tiny_llama, batches, random).layers[1].intermediate
        for batches in (BATCHES, BATCHES, BATCHES[1:])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Fisher importance is measured on moments of whole blocks, and block influence scores no groups.
@pytest.mark.parametrize(
    "kind", sorted(set(get_args(ImportanceKind)) - {"fisher", "block_influence", "learned_mask"})
)
def test_query_heads_of_a_group_are_part_of_its_importance(kind: ImportanceKind) -> None:
    model = make_tiny_model("qwen3", num_attention_heads=6, num_key_value_heads=2)
    for layer in measure_importance(model, BATCHES, Importance(kind=kind)).layers:
        assert layer.query_heads.shape == (2, 3)
        assert (layer.kv_groups >= layer.query_heads.sum(dim=1) * (1 - 1e-5)).all()


def test_parts_of_a_fused_projection_score_as_if_they_were_separate() -> None:
    model = make_tiny_model("phi3", num_attention_heads=6, num_key_value_heads=2)
    scores = measure_importance(model, BATCHES[:1], TAYLOR).layers[1]
    model.zero_grad()
    model(input_ids=BATCHES[0], labels=BATCHES[0]).loss.backward()
    layer = model.get_submodule("model.layers.1")

    def rows(name: str, dim: int) -> torch.Tensor:
        weight = layer.get_submodule(name).weight
        return (weight * weight.grad).detach().abs().sum(dim)

    gate_F, up_F = rows("mlp.gate_up_proj", 1).split(64)
    torch.testing.assert_close(scores.intermediate, gate_F + up_F + rows("mlp.down_proj", 0))
    query, key, value = rows("self_attn.qkv_proj", 1).split([48, 16, 16])
    heads_KR = (query + rows("self_attn.o_proj", 0)).view(2, 3, 8).sum(2)
    torch.testing.assert_close(scores.query_heads, heads_KR)
    expected_K = heads_KR.sum(1) + (key + value).view(2, 8).sum(1)
    torch.testing.assert_close(scores.kv_groups, expected_K)
