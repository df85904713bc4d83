"""Lets plain transformers open a model whose decoder layers differ in width.

`import espalier.loading` once; then `AutoModelForCausalLM.from_pretrained` (and `from_config`, and
the model classes themselves) build each decoder layer from its own entry of
`config.per_layer_config`, which transformers 5.14 and later store but few of its models read.
Without the import, loading ends in transformers' own list of size mismatches. Importing this
imports neither torch nor transformers: a family is prepared when its module is first imported.
"""

import copy
import functools
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

DECODER_LAYERS = {
    "transformers.models.llama.modeling_llama": "LlamaDecoderLayer",
    "transformers.models.mistral.modeling_mistral": "MistralDecoderLayer",
    "transformers.models.ministral.modeling_ministral": "MinistralDecoderLayer",
    "transformers.models.qwen2.modeling_qwen2": "Qwen2DecoderLayer",
    "transformers.models.qwen3.modeling_qwen3": "Qwen3DecoderLayer",
    "transformers.models.smollm3.modeling_smollm3": "SmolLM3DecoderLayer",
    "transformers.models.granite.modeling_granite": "GraniteDecoderLayer",
    "transformers.models.olmo2.modeling_olmo2": "Olmo2DecoderLayer",
    "transformers.models.olmo3.modeling_olmo3": "Olmo3DecoderLayer",
    "transformers.models.phi3.modeling_phi3": "Phi3DecoderLayer",
    "transformers.models.gpt_neox.modeling_gpt_neox": "GPTNeoXLayer",
    "transformers.models.qwen3_moe.modeling_qwen3_moe": "Qwen3MoeDecoderLayer",
    "transformers.models.gemma.modeling_gemma": "GemmaDecoderLayer",
    "transformers.models.gemma2.modeling_gemma2": "Gemma2DecoderLayer",
    "transformers.models.gemma3.modeling_gemma3": "Gemma3DecoderLayer",
}
"""Module of each supported family and its decoder layer, constructed as (config, layer_idx)."""

_SOFTCAPPED = {"transformers.models.gemma2.modeling_gemma2": "Gemma2PreTrainedModel"}
"""Models whose attention caps its scores, which PyTorch's fused attention cannot do: transformers
before 5.21 chose it all the same, and gave other logits than later versions give."""

_PREPARED = "_espalier_reads_per_layer_config"


def install() -> None:
    """Prepare the families already imported, and the others as they are. Safe to repeat."""
    for name in DECODER_LAYERS:
        if name in sys.modules:
            _prepare(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _prepare(module: ModuleType) -> None:
    """Make the module's decoder layer read its own configuration."""
    layer_class = getattr(module, DECODER_LAYERS[module.__name__])
    if not getattr(layer_class.__init__, _PREPARED, False):
        layer_class.__init__ = _reading_its_own_config(layer_class.__init__)
    if module.__name__ in _SOFTCAPPED:
        getattr(module, _SOFTCAPPED[module.__name__])._supports_sdpa = False


def _reading_its_own_config(construct: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(construct)
    def construct_from_own(
        self: Any, config: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> None:
        if not getattr(config, "is_heterogeneous", False):
            construct(self, config, layer_idx, *args, **kwargs)
        elif config.model_type in _DERIVES_HEAD_DIM:
            _construct_with_own_heads(construct, self, config, layer_idx)
        else:
            _construct_with_own_widths(construct, self, config, layer_idx)
        if getattr(config, "carries_stream", False):
            _widen_outputs(self, config.hidden_size)
            carry_stream(self)

    setattr(construct_from_own, _PREPARED, True)
    return construct_from_own


def _construct_with_own_widths(
    construct: Callable[..., None], layer: Any, config: Any, layer_idx: int
) -> None:
    own = config.per_layer_config[layer_idx]
    without_attention = own.num_key_value_heads == 0
    if without_attention:
        # No family can be built without heads: they are taken out afterwards.
        own = copy.copy(own)
        own.num_attention_heads = own.num_key_value_heads = 2
    construct(layer, own, layer_idx)
    if without_attention:
        _empty(layer.self_attn, own.head_dim)
        silence(layer.self_attn)
    # Modules read the attention implementation from their configuration at run time: they must
    # share the model's, or `set_attn_implementation` would no longer reach them.
    for submodule in layer.modules():
        if getattr(submodule, "config", None) is own:
            submodule.config = _shared(submodule, config, own)


_DERIVES_HEAD_DIM = ("gpt_neox",)
"""Families whose attention takes the hidden size over the number of heads for its head size."""


def _construct_with_own_heads(
    construct: Callable[..., None], layer: Any, config: Any, layer_idx: int
) -> None:
    """Build a layer with any number of heads, then its projections for the heads it has."""
    own = config.per_layer_config[layer_idx]
    any_heads = copy.copy(own)
    any_heads.num_attention_heads = 1
    construct(layer, any_heads, layer_idx)
    attention, head_dim = layer.attention, own.head_dim
    attention.config = config
    attention.head_size = head_dim
    attention.rotary_ndims = int(
        head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0)
    )
    attention.scaling = head_dim**-0.5
    width = own.num_attention_heads * head_dim
    for name, inputs, outputs in (
        ("query_key_value", config.hidden_size, 3 * width),
        ("dense", width, config.hidden_size),
    ):
        linear = type(getattr(attention, name))
        setattr(attention, name, linear(inputs, outputs, bias=config.attention_bias))
    if width == 0:
        silence(attention)


_STREAM_READERS = (
    ("input_layernorm", "self_attn.o_proj"),
    ("post_attention_layernorm", "mlp.down_proj"),
)


class _CarriedStream:
    """The residual stream before a block, from the norm that reads it to its output projection."""

    def __init__(self) -> None:
        self.stream: Any = None

    def keep(self, _norm: Any, args: tuple[Any, ...]) -> None:
        self.stream = args[0]

    def add(self, _projection: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        stream, self.stream = self.stream, None
        inputs = args[0]
        torch = sys.modules["torch"]  # Whoever runs a model has it.
        return (torch.cat([inputs, stream.to(inputs.dtype)], dim=-1),)


def carry_stream(layer: Any) -> None:
    """Let each block's output projection read the stream before the block as well, in place.

    SliceGPT's shortcuts: further columns of the projection turn the stream to the next block's
    basis. Plain transformers refuses such weights, which are wider than it expects.
    """
    for norm, projection in _STREAM_READERS:
        carried = _CarriedStream()
        layer.get_submodule(norm).register_forward_pre_hook(carried.keep)
        layer.get_submodule(projection).register_forward_pre_hook(carried.add)


def _widen_outputs(layer: Any, hidden_size: int) -> None:
    for _, name in _STREAM_READERS:
        parent, _, child = name.rpartition(".")
        old = layer.get_submodule(name)
        wide = type(old)(old.in_features + hidden_size, old.out_features, bias=old.bias is not None)
        setattr(layer.get_submodule(parent), child, wide)


_READ_WHEN_RUN = {"Phi3Attention": ("num_attention_heads",)}
"""Modules that read sizes of their layer from their configuration each time they run."""


class OwnWidths:
    """A model's configuration as one layer sees it: its own sizes, everything else the model's."""

    def __init__(self, config: Any, **own: int) -> None:
        self._config = config
        self._own = own

    def __getattr__(self, name: str) -> Any:
        """Reached for what is not an attribute of this object."""
        if name in ("_config", "_own") or name.startswith("__"):
            raise AttributeError(name)  # While being copied, before there is anything to ask.
        return self._own[name] if name in self._own else getattr(self._config, name)


def _shared(module: Any, config: Any, own: Any) -> Any:
    names = _READ_WHEN_RUN.get(type(module).__name__, ())
    return OwnWidths(config, **{name: getattr(own, name) for name in names}) if names else config


def silence(attention: Any) -> None:
    """Let an attention module that has no heads write only its output's bias, in place."""
    attention.forward = types.MethodType(_attend_to_nothing, attention)


def _attend_to_nothing(
    self: Any,
    hidden_states: Any,
    *_args: Any,
    past_key_values: Any = None,
    layer_past: Any = None,
    **_kwargs: Any,
) -> tuple[Any, None]:
    *batch_and_length, _ = hidden_states.shape
    past_key_values = layer_past if past_key_values is None else past_key_values
    if past_key_values is not None:
        # One number a token: the cache asks its first layer how many tokens it has seen.
        batch, length = batch_and_length
        rows = hidden_states.new_zeros(batch, 1, length, 1)
        past_key_values.update(rows, rows, self.layer_idx)
    project = self.dense if hasattr(self, "dense") else self.o_proj
    return project(hidden_states.new_zeros(*batch_and_length, 0)), None


def _empty(attention: Any, head_dim: int) -> None:
    """Take all heads out of an attention module that has some."""
    for name, module in attention.named_children():
        weight = getattr(module, "weight", None)
        if weight is None or weight.shape == (head_dim,):
            continue  # A norm of each head by itself has none to lose.
        for parameter in ("weight", "bias"):
            values = getattr(module, parameter, None)
            if values is None or (name == "o_proj" and parameter == "bias"):
                continue
            kept = values.detach()[:, :0] if name == "o_proj" else values.detach()[:0]
            setattr(module, parameter, type(values)(kept, requires_grad=values.requires_grad))
        if weight.dim() == 2:
            module.out_features, module.in_features = module.weight.shape


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: wraps the loader of the modules in `DECODER_LAYERS`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in DECODER_LAYERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PreparingLoader(spec.loader)
        return spec


class _PreparingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as `get_source`, is the wrapped loader's."""
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _prepare(module)


install()
