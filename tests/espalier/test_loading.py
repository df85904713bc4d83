"""Saving a pruned model and opening it with plain transformers after `import espalier.loading`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

import espalier.loading
from pruning.models.adapter import adapter_for
from pruning.models.families import FAMILIES as SUPPORTED
from pruning.models.geometry import layer_widths, unpruned_plan
from pruning.models.projections import output_projections
from pruning.plan import GONE, LayerPlan, PruningPlan
from pruning.surgery import apply_plan
from tests.pruning.tiny import DENSE, FAMILIES, make_tiny_model, random_ids


def prune_unevenly(model: PreTrainedModel) -> None:
    """Each layer another intermediate size; the second loses a KV group, the third two."""
    base = unpruned_plan(model)
    layers = tuple(
        layer.model_copy(
            update={
                "intermediate": layer.intermediate[: 12 if layer.experts else 60 - 8 * i],
                "kv_groups": layer.kv_groups[: 3 - min(i, 2)],
                "experts": layer.experts[: 6 - i],
            }
        )
        for i, layer in enumerate(base.layers)
    )
    apply_plan(model, PruningPlan(layers=layers), previous=base)


@pytest.fixture(scope="module", params=FAMILIES)
def pruned(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = make_tiny_model(request.param)
    prune_unevenly(model)
    return model


@pytest.fixture
def saved(pruned: PreTrainedModel, tmp_path: Path) -> Path:
    pruned.save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=random_ids()).logits


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_every_supported_family_has_its_decoder_layer_listed() -> None:
    packages = {name.split(".")[2] for name in espalier.loading.DECODER_LAYERS}
    assert packages == {model_type.removesuffix("_text") for model_type in SUPPORTED}


def test_a_pruned_model_opens_bit_equal(pruned: PreTrainedModel, saved: Path) -> None:
    reopened = AutoModelForCausalLM.from_pretrained(saved)
    assert layer_widths(reopened) == layer_widths(pruned)
    assert type(reopened) is type(pruned)
    assert torch.equal(logits(reopened), logits(pruned))
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    written = [model.generate(prompt, **settings).tolist() for model in (reopened, pruned)]
    assert written[0] == written[1]


def test_a_reopened_model_saves_the_same_again(saved: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(saved).save_pretrained(tmp_path / "again")
    first, again = (
        json.loads((directory / "config.json").read_text())
        for directory in (saved, tmp_path / "again")
    )
    assert first == again
    own = again["per_layer_config"]["2"]
    assert 12 in own.values() or own["intermediate_size"] == 44
    weights = [(d / "model.safetensors").read_bytes() for d in (saved, tmp_path / "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_a_cache_equals_generation_without(saved: Path, cache: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain = model.generate(prompt, **settings, use_cache=False)
    cached = model.generate(prompt, **settings, cache_implementation=cache)
    assert cached.tolist() == plain.tolist()


def test_gradient_checkpointing_gives_the_same_gradients(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved).train()
    ids, found = random_ids(), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append(output_projections(model)[1, "intermediate"].parameter.grad.clone())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_low_rank_adapters_train_and_merge(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make_tiny_model(family)
    prune_unevenly(model)
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    targets = ["q_proj", "down_proj"]
    adapted = peft.get_peft_model(
        opened, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    )
    ids = random_ids()
    adapted(input_ids=ids, labels=ids).loss.backward()
    expected = logits(adapted)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_quantised_model_keeps_its_widths_and_its_configuration(
    family: str, tmp_path: Path
) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = make_tiny_model(family)
    prune_unevenly(model)
    model.save_pretrained(tmp_path / "model")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model",
        quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()),
    )
    quantised.save_pretrained(tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"
    assert config["per_layer_config"]["2"]["intermediate_size"] == 44
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "quantised")
    assert torch.equal(logits(reopened), logits(quantised))
    torch.testing.assert_close(logits(quantised), logits(model), atol=0.5, rtol=0.1)


def test_the_attention_implementation_can_still_be_changed(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    before = logits(model)
    model.set_attn_implementation("eager")
    layer = adapter_for(model.config).layers(model)[2]
    attention = layer.get_submodule(adapter_for(model.config).family.attention)
    assert attention.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_layers_open_bit_equal(family: str, tmp_path: Path) -> None:
    model = make_tiny_model(family, mlp_only_layers=[])
    base = unpruned_plan(model)
    # Of its heads GPT-NeoX derives their size.
    heads = (0, 2) if family != "gpt_neox" else base.layers[0].kv_groups
    whole = base.layers[0]
    changes = {
        "intermediate": whole.intermediate[: 8 if whole.experts else 40],
        "kv_groups": heads,
        "experts": whole.experts[:4],
    }
    apply_plan(model, base.with_layers([whole.model_copy(update=changes)] * 3), previous=base)
    assert not model.config.is_heterogeneous
    model.save_pretrained(tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(reopened), logits(model))
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    assert (
        reopened.generate(prompt, **settings).tolist()
        == model.generate(prompt, **settings).tolist()
    )


def test_equal_layers_are_saved_as_an_ordinary_model(tmp_path: Path) -> None:
    model = make_tiny_model("qwen2")
    base = unpruned_plan(model)
    layer = LayerPlan(intermediate=tuple(range(40)), kv_groups=(0, 2))
    apply_plan(model, PruningPlan(layers=(layer,) * 3), previous=base)
    model.save_pretrained(tmp_path)
    assert "per_layer_config" not in json.loads((tmp_path / "config.json").read_text())
    opened = run_python(
        "import sys; from transformers import AutoModelForCausalLM as A;"
        "print(A.from_pretrained(sys.argv[1]).config.intermediate_size)",
        str(tmp_path),
    )
    assert opened.stdout.strip() == "40", opened.stderr


def test_equal_layers_whose_heads_do_not_divide_the_hidden_size_open_too(tmp_path: Path) -> None:
    model = make_tiny_model("llama", num_attention_heads=8, num_key_value_heads=8)
    base = unpruned_plan(model)
    layer = LayerPlan(intermediate=tuple(range(40)), kv_groups=(0, 1, 2, 5, 7))
    apply_plan(model, PruningPlan(layers=(layer,) * 3), previous=base)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_importing_the_loader_imports_neither_torch_nor_transformers() -> None:
    done = run_python(
        "import sys, espalier.loading; print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_the_package_offers_the_clients_and_imports_them_only_then() -> None:
    done = run_python(
        "import sys, espalier; before = 'httpx' in sys.modules;"
        "from espalier import AsyncClient, Client; print(before, Client, AsyncClient)"
    )
    classes = "<class 'espalier.client.Client'> <class 'espalier.client.AsyncClient'>"
    assert done.stdout.strip() == f"False {classes}", done.stderr


def test_a_fresh_process_opens_a_pruned_model_only_after_the_import(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    prune_unevenly(model)
    model.save_pretrained(tmp_path)
    opening = (
        "import sys; from transformers import AutoModelForCausalLM as A;"
        "m = A.from_pretrained(sys.argv[1]); print(sum(p.numel() for p in m.parameters()))"
    )
    without = run_python(opening, str(tmp_path))
    assert without.returncode != 0
    assert "size mismatch" in without.stderr or "mismatch" in without.stderr
    loaded = run_python(f"import espalier.loading; {opening}", str(tmp_path))
    assert loaded.stdout.strip() == str(sum(p.numel() for p in model.parameters())), loaded.stderr


def test_vllm_prepares_its_processes_by_the_installed_entry_point(tmp_path: Path) -> None:
    model = make_tiny_model("llama")
    prune_unevenly(model)
    model.save_pretrained(tmp_path)
    opened = run_python(
        "import sys; from importlib.metadata import entry_points;"
        "[plugin.load()() for plugin in entry_points(group='vllm.general_plugins')];"
        "from transformers import AutoModelForCausalLM as A;"
        "m = A.from_pretrained(sys.argv[1]); print(sum(p.numel() for p in m.parameters()))",
        str(tmp_path),
    )
    assert opened.stdout.strip() == str(sum(p.numel() for p in model.parameters())), opened.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_opens_a_shallower_model(family: str, tmp_path: Path) -> None:
    model = make_tiny_model(family)
    base = unpruned_plan(model)
    plan = PruningPlan(layers=(base.layers[0], GONE, base.layers[2]))
    apply_plan(model, plan, previous=base)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "per_layer_config" not in config
    assert config["num_hidden_layers"] == 2
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_layers_with_fewer_query_heads_open_bit_equal(tmp_path: Path) -> None:
    model = make_tiny_model("qwen2")
    base = unpruned_plan(model)
    fewer = base.layers[1].model_copy(update={"query_heads": ((0,), (1,), (0,))})
    plan = PruningPlan(layers=(base.layers[0], fewer, base.layers[2]))
    apply_plan(model, plan, previous=base)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.fixture(scope="module", params=DENSE)
def without_blocks(request: pytest.FixtureRequest) -> PreTrainedModel:
    """The first layer has no attention block, the second no MLP block."""
    model = make_tiny_model(request.param)
    base = unpruned_plan(model)
    no_attention = base.layers[0].model_copy(update={"kv_groups": ()})
    no_mlp = base.layers[1].model_copy(update={"intermediate": ()})
    plan = PruningPlan(layers=(no_attention, no_mlp, base.layers[2]))
    apply_plan(model, plan, previous=base)
    return model


def test_a_model_without_some_blocks_opens_bit_equal(
    without_blocks: PreTrainedModel, tmp_path: Path
) -> None:
    without_blocks.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert layer_widths(opened) == layer_widths(without_blocks)
    assert torch.equal(logits(opened), logits(without_blocks))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_model_without_its_first_attention_generates_with_a_cache_as_without(
    without_blocks: PreTrainedModel, cache: str
) -> None:
    prompt = random_ids(num_sequences=1, length=6)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    plain = without_blocks.generate(prompt, **settings, use_cache=False)
    cached = without_blocks.generate(prompt, **settings, cache_implementation=cache)
    assert cached.tolist() == plain.tolist()
