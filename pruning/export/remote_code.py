"""The canonical checkpoint with the few lines that build its layers: opens with trust_remote_code.

For who may run a repository's code but install nothing; everyone else imports `espalier.loading`.
"""

import json
import os
import shutil
import string
from pathlib import Path

from transformers import PreTrainedModel

from pruning.errors import ExportRefused
from pruning.models.adapter import adapter_for
from pruning.models.geometry import layer_widths

MODELING_NAME = "modeling_espalier"

_MODELING = string.Template('''\
"""A $family model whose decoder layers differ in width: each is built from its own configuration.

Written by Espalier. Needs transformers 5.14 or later, for `config.per_layer_config`.
"""

from torch import nn
from transformers.models.$family import modeling_$family as stock


class $layer(stock.$layer):
    def __init__(self, config, layer_idx):
        own = config.per_layer_config[layer_idx]
        super().__init__(own, layer_idx)
        # Modules read the attention implementation from the configuration they share.
        for module in self.modules():
            if getattr(module, "config", None) is own:
                module.config = config


class $base(stock.$base):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList($layer(config, i) for i in range(config.num_hidden_layers))
        self.post_init()


class $causal(stock.$causal):
    def __init__(self, config):
        super().__init__(config)
        self.model = $base(config)
        self.post_init()
''')


def export_remote_code(model: PreTrainedModel, checkpoint: Path, directory: Path) -> None:
    """Write the variant beside nothing else; weights are linked, not copied, where they can be.

    Raises:
        ExportRefused: the layers are equal, and the canonical checkpoint opens as it is; or stock
            modules do not build them.
    """
    if not model.config.is_heterogeneous:
        raise ExportRefused("remote_code: all layers are equal, so the checkpoint needs no code")
    family = adapter_for(model.config).family
    if family.attention_reads_config or family.derives_head_dim:
        raise ExportRefused(
            f"remote_code: {model.config.model_type} takes its layers' sizes from the model's "
            "configuration",
            hint="import espalier.loading, or export as padded",
        )
    if any(layer.num_key_value_heads == 0 for layer in layer_widths(model)):
        raise ExportRefused(
            "remote_code: a layer has no attention block, which stock modules cannot be built for",
            hint="import espalier.loading, or export as padded",
        )
    for path in checkpoint.iterdir():
        if path.is_file() and path.name not in ("config.json", "manifest.json", "README.md"):
            _link(path, directory / path.name)
    classes = _classes(model)
    (directory / f"{MODELING_NAME}.py").write_text(_MODELING.substitute(classes), encoding="utf-8")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    # vLLM builds the model without its head through AutoModel.
    config["auto_map"] = {
        "AutoModel": f"{MODELING_NAME}.{classes['base']}",
        "AutoModelForCausalLM": f"{MODELING_NAME}.{classes['causal']}",
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _classes(model: PreTrainedModel) -> dict[str, str]:
    base = model.base_model
    return {
        "family": type(base).__module__.rsplit(".modeling_", 1)[1],
        "layer": type(base.get_submodule("layers.0")).__name__,
        "base": type(base).__name__,
        "causal": type(model).__name__,
    }


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
