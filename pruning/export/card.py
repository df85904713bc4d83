"""The model card, README.md of a checkpoint: all of it follows from manifest, exports, licence."""

import json
import re
from collections.abc import Iterable, Sequence

from pruning.export.export import Exported
from pruning.export.licence import Licence
from pruning.export.parity import ParityRecord
from pruning.export.speed import SpeedRecord
from pruning.manifest import Manifest, Measurement
from pruning.paired import compare_rows, decode_rows
from pruning.recipe_parts.data import Domain
from pruning.recipe_parts.model import HubModel

CARD_NAME = "README.md"


def model_card(
    manifest: Manifest, exports: Sequence[Exported], licence: Licence | None = None
) -> str:
    """Markdown with the hub's metadata on top: lineage, licence, evaluation, and how to load it."""
    licence = licence or Licence()
    return "\n".join(
        [
            _metadata(manifest, licence),
            _summary(manifest, licence),
            _loading(manifest, exports),
            _evaluation(manifest),
            _exports(exports),
            _speed(exports),
            _training(manifest),
        ]
    )


def _metadata(manifest: Manifest, licence: Licence) -> str:
    base = manifest.recipe.model
    said: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    if isinstance(base, HubModel):
        said |= {"base_model": base.id, "base_model_relation": "finetune"}
    if licence.identifier is None:
        said |= {"license": "other", "license_name": "same-as-base-model"}
    else:
        said |= {"license": licence.identifier}
        said |= {"license_name": licence.name} if licence.name else {}
        said |= {"license_link": licence.link} if licence.link else {}
    said["tags"] = ["espalier", "pruned"]
    return f"---\n{_metadata_text(said)}---\n"


def _metadata_text(said: dict[str, object]) -> str:
    """YAML of flat fields: JSON's strings are YAML's, and plain words need no quotes."""
    lines = []
    for name, value in said.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {item}" for item in value)]
        else:
            plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
            lines.append(f"{name}: {value if plain else json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _licence(licence: Licence) -> str:
    if licence.identifier is None:
        known = "The licence of the base model applies"
    else:
        name = f" ({licence.name})" if licence.name else ""
        known = f"The licence of the base model applies, `{licence.identifier}`{name}"
    texts = ", ".join(f"[{text.name}]({text.name})" for text in licence.texts)
    return f"{known}{f': {texts}' if texts else ''}; so does that of the training text."


def _summary(manifest: Manifest, licence: Licence) -> str:
    share = 1 - manifest.num_parameters / manifest.base_num_parameters
    lineage = manifest.lineage
    revision = f" at revision `{lineage.model_revision}`" if lineage.model_revision else ""
    widths = manifest.widths
    return f"""\
# {_name(lineage.model)}, {share:.0%} smaller

Pruned from **{lineage.model}**{revision} by Espalier:
{manifest.num_parameters:,} of {manifest.base_num_parameters:,} parameters stay, in
{len(widths)} layers {_range(w.intermediate_size for w in widths)} channels and
{_range(w.num_attention_heads for w in widths)} heads wide.

{_licence(licence)}
"""


def _loading(manifest: Manifest, exports: Sequence[Exported]) -> str:
    carries = manifest.recipe.importance.rotation == "per_block"
    equal = len(set(manifest.widths)) == 1 and not carries
    install = "" if equal else "import espalier.loading  # pip install espalier\n"
    why = (
        "All layers are equal, so every engine that runs the base model runs this.\n"
        if equal
        else "Shortcut matrices turn the residual stream between blocks; the import adds them.\n"
        if carries
        else "Layers differ in width, which transformers 5.14 and later store; the import builds "
        "them.\n"
    )
    text = f"""\
## Loading it

{why}
```python
{install}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")
```
"""
    if not carries:
        vllm = "" if equal else " --model-impl transformers  # with espalier installed beside vLLM"
        text += f"\nvLLM:\n\n```sh\nvllm serve THIS_DIRECTORY{vllm}\n```\n"
    return text + "".join(_how_to_load(export) for export in exports)


def _how_to_load(export: Exported) -> str:
    where = f"exports/{export.directory.name}"
    if export.format.startswith("gguf"):
        how = f"```sh\nllama-server -m {where}/model.gguf\n```"
    elif export.format == "nemotron_nas":
        how = f"```sh\nvllm serve {where} --trust-remote-code\n```"
    elif export.format == "onnx":
        how = f'```python\nonnxruntime.InferenceSession("{where}/model.onnx")\n```'
    else:
        trust = ", trust_remote_code=True" if export.format == "remote_code" else ""
        how = f'```python\nAutoModelForCausalLM.from_pretrained("{where}"{trust})\n```'
    return f"\n{export.format}:\n\n{how}\n"


def _evaluation(manifest: Manifest) -> str:
    shown = [m for m in manifest.measurements if m.increment in (0, manifest.increment)]
    if not shown:
        return "## Evaluation\n\nNone was made.\n"
    rows = [
        "| model | suite | metric | value | standard error | samples |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_row(m) for m in shown]
    protocols = {m.suite: json.dumps(m.protocol, sort_keys=True) for m in shown}
    lines = [f"- {suite}: `{protocol}`" for suite, protocol in protocols.items()]
    parts = [*rows, "", *_against_base(manifest, shown), "Protocols:", "", *lines, ""]
    return "\n".join(["## Evaluation", "", *parts])


def _against_base(manifest: Manifest, shown: Sequence[Measurement]) -> list[str]:
    """The differences from the base model on the same rows, where both were kept."""
    base = {(m.suite, m.metric): m.rows for m in shown if m.stage == "base"}
    rows = []
    for m in shown:
        before = base.get((m.suite, m.metric))
        if m.stage != "recovered" or m.rows is None or before is None:
            continue
        found = compare_rows(decode_rows(before), decode_rows(m.rows))
        if found is not None:
            rows.append(
                f"| {m.suite} | {m.metric} | {found.difference:+.4g} | {found.low:+.4g} to "
                f"{found.high:+.4g} | {found.p_value:.2g} | {found.num_rows} |"
            )
    if not rows:
        return []
    return [
        f"Increment {manifest.increment} minus the base model on the same rows (of a perplexity: "
        "its windows' losses in nats):",
        "",
        "| suite | metric | difference | 95 % interval | p | rows |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _row(m: Measurement) -> str:
    own = "base" if m.stage == "base" else f"increment {m.increment}, {m.stage}"
    model = m.protocol.get("model", own)
    stderr = "" if m.stderr is None else f"{m.stderr:.3g}"
    samples = "" if m.num_samples is None else str(m.num_samples)
    return f"| {model} | {m.suite} | {m.metric} | {m.value:,.4g} | {stderr} | {samples} |"


def _exports(exports: Sequence[Exported]) -> str:
    if not exports:
        return ""
    rows = [
        "| export | engine | precision | largest difference (nats) | divergence | same top token |",
        "|---|---|---|---|---|---|",
    ]
    rows += [_proof(export, record) for export in exports for record in export.records]
    return "\n".join(
        [
            "## Exports",
            "",
            "Each was opened by its own engine in a fresh process, and its log-probabilities were "
            "compared with those of this checkpoint in fp32 on fixed prompts:",
            "",
            *rows,
            "",
        ]
    )


def _proof(export: Exported, record: ParityRecord) -> str:
    return (
        f"| {export.format} | {record.engine_version} | {record.precision} "
        f"| {record.max_difference:.2g} | {record.divergence:.2g} | {record.same_top_token:.0%} |"
    )


def _speed(exports: Sequence[Exported]) -> str:
    timed = [(export.format, export.speed) for export in exports if export.speed is not None]
    if not timed:
        return ""
    rows = [
        "| export | model | tokens/s | first token (ms) | memory (MB) |",
        "|---|---|---|---|---|",
        *(row for name, record in timed for row in _speed_rows(name, record)),
    ]
    protocol = json.dumps(timed[0][1].protocol, sort_keys=True)
    return "\n".join(
        [
            "## Speed of the exports",
            "",
            "Beside the base model in the same engine and format, the two taking turns:",
            "",
            *rows,
            "",
            f"Protocol: `{protocol}`",
            "",
        ]
    )


def _speed_rows(name: str, record: SpeedRecord) -> Iterable[str]:
    for model, speed in (("base", record.dense), ("pruned", record.export)):
        memory = "" if speed.memory_bytes is None else f"{speed.memory_bytes / 1e6:,.0f}"
        yield (
            f"| {name} | {model} | {speed.decode_tokens_per_second:,.1f} "
            f"| {speed.first_token_seconds * 1000:,.1f} | {memory} |"
        )


def _training(manifest: Manifest) -> str:
    recipe = manifest.recipe.model_dump_json(indent=2, exclude={"data"})
    domains = "\n".join(f"- {_domain(domain)}" for domain in manifest.recipe.data.train)
    return f"""\
## Recipe and data

{manifest.num_tokens:,} training tokens in {manifest.step:,} steps, over {manifest.increment}
increments. Text, by its digest `{manifest.data_fingerprint}`:

{domains}

```json
{recipe}
```

Versions: `{json.dumps(manifest.versions, sort_keys=True)}`
"""


def _domain(domain: Domain) -> str:
    source = domain.source
    what = {"hub": "dataset", "path": "files", "inline": "text in the request"}[source.kind]
    name = getattr(source, "id", None) or getattr(source, "path", "").rsplit("/", 1)[-1]
    terms = f"({domain.license})" if domain.license else None
    return " ".join(filter(None, (f"{domain.name}:", what, name, terms)))


def _name(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
