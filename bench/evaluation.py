"""Evaluation against its bars: `python -m bench.evaluation --model DIR --data INDEX [--parts …]`.

`--data` names an index of local tasks (docs/evaluation.md). The parts are kept apart in the JSON,
so that each can be run by itself:

tasks       rows per second beside lm-eval's own Hugging Face backend, the same rows in one run, and
            whether both say the same; `--every 50` takes that share of each task, so that the sum
            is what a fiftieth of all rows takes
perplexity  WikiText-2 beside a plain loop over transformers' own loss, and beside `--expect`
corpus      reading, tokenising and packing beside the tokenizers library's batch speed, and the
            memory of a corpus that is larger than the process may hold
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import espalier.loading  # noqa: F401  # Opens models whose layers differ in width.
from pruning.data.corpus import build_corpus
from pruning.data.sources import ReadReport, read_documents
from pruning.evaluation.harness import HarnessModel
from pruning.evaluation.rows import build_task, read_suites
from pruning.evaluation.score_cache import ScoreCache
from pruning.evaluation.suites import encode_text, run_suites
from pruning.recipe_parts.data import Data, PathData
from pruning.recipe_parts.evaluation import Evaluation, PerplexitySuite, RowsSuite

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
SPEED_BAR = 2.0
LOG_LIKELIHOOD_BAR = 1e-3
PERPLEXITY_BAR = 0.005
TOKENISE_BAR = 0.8
MEMORY_MIB = 96
"""What the limited process may allocate beyond what it holds once everything is imported."""


@dataclass(frozen=True)
class Row:
    """One bar, or none, and what was measured."""

    name: str
    bar: str
    figure: float | str
    met: bool | None


# --- tasks ----------------------------------------------------------------------------------------


def measure_tasks(options: argparse.Namespace) -> Iterator[Row]:
    """The same rows through both backends, task by task, one after the other."""
    model, tokenizer = open_model(options.model)
    suites = read_suites(options.data, options.tasks or list(json.loads(options.data.read_text())))
    seconds = {"ours": 0.0, "lm-eval": 0.0}
    cpu_seconds = {"ours": 0.0, "lm-eval": 0.0}
    worst, same, num_rows = 0.0, True, 0
    until = time.monotonic() + options.seconds
    for suite in suites:
        if time.monotonic() > until:
            yield Row(f"{suite.name}: left out for want of time", "", "", None)
            continue
        backends = {
            "ours": lambda: HarnessModel(
                model, tokenizer, precision="float32", cache=ScoreCache(None)
            ),
            "lm-eval": lambda: HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=options.peer_batch
            ),
        }
        found = {name: _run(make, suite, options.every) for name, make in backends.items()}
        ours, theirs = found["ours"], found["lm-eval"]
        difference = max(abs(a - b) for a, b in zip(ours.lls, theirs.lls, strict=True))
        worst = max(worst, difference)
        same = same and ours.metrics == theirs.metrics
        num_rows += ours.num_rows
        for name, one in found.items():
            seconds[name] += one.seconds
            cpu_seconds[name] += one.cpu_seconds
        yield Row(
            f"{suite.name}: rows/s beside lm-eval's",
            "",
            f"{ours.num_rows / ours.seconds:.2f} / {theirs.num_rows / theirs.seconds:.2f}"
            f" = {theirs.seconds / ours.seconds:.2f}x",
            None,
        )
        yield Row(f"{suite.name}: {json.dumps(ours.metrics)}", "", f"{difference:.1e}", None)
    ratio = seconds["lm-eval"] / seconds["ours"]
    yield Row(f"rows/s of {num_rows} rows, times lm-eval's", f">= {SPEED_BAR}", ratio, ratio >= 2)
    cpu_ratio = cpu_seconds["lm-eval"] / cpu_seconds["ours"]
    yield Row("the same by processor time, whatever else ran", "", cpu_ratio, None)
    yield Row(
        "largest difference of a log-likelihood, nats",
        f"<= {LOG_LIKELIHOOD_BAR}",
        worst,
        worst <= LOG_LIKELIHOOD_BAR,
    )
    yield Row("acc and acc_norm the same", "all", "yes" if same else "no", same)


@dataclass(frozen=True)
class _Found:
    metrics: dict[str, float]
    lls: list[float]
    num_rows: int
    seconds: float
    cpu_seconds: float


def _run(make: Callable[[], Any], suite: RowsSuite, every: int) -> _Found:
    task = build_task(suite)
    chosen = list(range(0, len(task.eval_docs), every))
    lm = make()
    started, cpu_started = time.perf_counter(), time.process_time()
    result = evaluate(
        lm=lm,
        task_dict={"tasks": {suite.name: task}, "groups": {}},
        samples={suite.name: chosen},
        bootstrap_iters=0,
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    samples = result["samples"][suite.name]
    accuracies = ("acc,none", "acc_norm,none")
    return _Found(
        metrics={k: v for k, v in result["results"][suite.name].items() if k in accuracies},
        lls=[response[0][0] for sample in samples for response in sample["resps"]],
        num_rows=len(samples),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
    )


# --- perplexity -----------------------------------------------------------------------------------


def measure_perplexity(options: argparse.Namespace) -> Iterator[Row]:
    """The text's first tokens in windows of each length, in bf16 products over fp32 weights."""
    model, tokenizer = open_model(options.model)
    suite = PerplexitySuite(
        name="wikitext2",
        source=PathData(path=str(options.wikitext)),
        context_lengths=tuple(options.lengths),
        max_tokens=options.tokens,
    )
    evaluation = Evaluation(suites=(suite,), precision="bfloat16")
    expected = dict(part.split("=") for part in options.expect)
    ids = torch.from_numpy(encode_text(tokenizer, options.wikitext.read_text()).astype("int64"))
    for score in run_suites(model, tokenizer, evaluation, directory=Path(tempfile.gettempdir())):
        length = int(score.protocol["context_length"] or 0)
        plain = _plain_perplexity(model, ids[: options.tokens], length)
        figures = {"a plain loop": plain}
        if str(length) in expected:
            figures["expected"] = float(expected[str(length)])
        for name, other in figures.items():
            off = abs(score.value / other - 1)
            met = off <= PERPLEXITY_BAR
            figure = f"{score.value:.3f} / {other:.3f} = {off:.2%} off"
            yield Row(f"WikiText-2 perplexity@{length} beside {name}", "<= 0.5 %", figure, met)


@torch.no_grad()
def _plain_perplexity(model: PreTrainedModel, ids: torch.Tensor, length: int) -> float:
    windows = ids[: len(ids) // length * length].view(-1, length)
    total = 0.0
    for window in torch.split(windows, max(1, 2048 // length)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total += float(model(window, labels=window).loss) * len(window)
    return math.exp(total / len(windows))


# --- corpus ---------------------------------------------------------------------------------------


def measure_corpus(options: argparse.Namespace) -> Iterator[Row]:
    """Both read the same file; ours also splits, hashes, packs and writes what it reads."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ours, theirs = [], []
    for _ in range(options.repeats):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            corpus = build_corpus(_data(options.corpus), tokenizer, Path(directory))
            num_tokens = corpus.num_train_tokens + sum(map(len, corpus.held_out))
        ours.append(num_tokens / (time.perf_counter() - started))
        documents = list(read_documents(PathData(path=str(options.corpus)), ReadReport()))
        started = time.perf_counter()
        encoded = tokenizer.backend_tokenizer.encode_batch(documents, add_special_tokens=False)
        theirs.append(sum(map(len, encoded)) / (time.perf_counter() - started))
    ratio = max(ours) / max(theirs)
    figure = f"{max(ours):,.0f} / {max(theirs):,.0f} tokens/s = {ratio:.2f}x"
    name = "reading, tokenising and packing beside encode_batch alone"
    yield Row(name, f">= {TOKENISE_BAR}x", figure, ratio >= TOKENISE_BAR)
    yield from _measure_memory(options)


def _measure_memory(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as directory:
        large = Path(directory) / "large.jsonl"
        num_bytes = _write_large(options.corpus, large, options.large_mib << 20)
        command = [sys.executable, "-m", "bench.evaluation", "--limited", str(large)]
        done = subprocess.run(
            [*command, "--model", str(options.model), "--data", str(options.data)],
            capture_output=True,
            text=True,
            check=False,
        )
    figure = done.stdout.strip() or done.stderr.strip()[-300:]
    name = f"a corpus of {num_bytes >> 20} MiB in a process that may hold {MEMORY_MIB} MiB more"
    yield Row(name, "runs through", figure, done.returncode == 0)


def _write_large(source: Path, target: Path, num_bytes: int) -> int:
    """Different documents of the same text, until there are enough bytes."""
    written = 0
    with target.open("w") as file:
        while written < num_bytes:
            for document in read_documents(PathData(path=str(source)), ReadReport()):
                written += file.write(json.dumps({"text": f"{written} {document}"}) + "\n")
                if written >= num_bytes:
                    break
    return written


def run_limited(options: argparse.Namespace) -> None:
    """Build the corpus under a limit on this process's own memory, and say how it went."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer(["Everything that is loaded late is loaded now."] * 64)
    held = _data_bytes()
    allowed = held + (MEMORY_MIB << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        corpus = build_corpus(_data(options.limited), tokenizer, Path(directory))
        num_tokens = corpus.num_train_tokens
    seconds = time.perf_counter() - started
    print(
        f"{num_tokens:,} tokens at {num_tokens / seconds:,.0f}/s,"
        f" {(_data_bytes() - held) >> 20} MiB more at the end"
    )


def _data_bytes() -> int:
    """Private memory of this process, as RLIMIT_DATA counts it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) << 10


def _data(path: Path) -> Data:
    return Data.model_validate({"train": str(path)})


# --- all ------------------------------------------------------------------------------------------


def open_model(directory: Path) -> tuple[PreTrainedModel, Any]:
    """In fp32, in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "tasks": measure_tasks,
    "perplexity": measure_perplexity,
    "corpus": measure_corpus,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if options.limited is not None:
        run_limited(options)
        return
    for part in options.parts:
        load = os.getloadavg()[0]
        rows = []
        for row in PARTS[part](options):
            rows.append(row)
            verdict = "" if row.met is None else "met" if row.met else "MISSED"
            shown = f"{row.figure:.3g}" if isinstance(row.figure, float) else row.figure
            print(f"{row.name:60} {row.bar:>12} {shown:>40} {verdict}", flush=True)
        _store(part, rows, options, load)


def _store(part: str, rows: list[Row], options: argparse.Namespace, load: float) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    # Tasks may be measured a few at a time.
    key = f"{part}: {', '.join(options.tasks)}" if part == "tasks" and options.tasks else part
    found[key] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "threads": options.threads,
            "load_before": round(load, 2),
        },
        "torch": torch.__version__,
        "conditions": {
            "every": options.every,
            "peer_batch_size": options.peer_batch,
            "precision": "float32" if part == "tasks" else "bfloat16",
            "tokens": options.tokens,
        },
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="an index of local tasks")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=["tasks"])
    parser.add_argument("--tasks", nargs="*", help="all of the index unless named")
    parser.add_argument("--every", type=int, default=50, help="of this many rows one is asked")
    parser.add_argument("--seconds", type=float, default=800.0, help="begin no task after this")
    parser.add_argument("--peer-batch", type=int, default=8, help="batch size of lm-eval's backend")
    parser.add_argument("--wikitext", type=Path, help="the text, as a file")
    parser.add_argument("--lengths", nargs="*", type=int, default=[2048, 128])
    parser.add_argument("--tokens", type=int, default=59_392)
    parser.add_argument("--expect", nargs="*", default=[], help="perplexity by length: 2048=19.4")
    parser.add_argument("--corpus", type=Path, help="a file with documents")
    parser.add_argument("--large-mib", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limited", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
