"""The API against its bars: `python -m bench.api [routes|estimates|streams|downloads|scale …]`.

Routes are paired, in one run and by processor time, with bare FastAPI routes that send the same SQL
by hand; downloads with nginx on the same file. Each part adds its figures to results/api.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench.api_downloads import bench_downloads
from bench.api_estimates import bench_estimates
from bench.api_routes import bench_routes
from bench.api_scale import bench_scale
from bench.api_site import Bench, furnished
from bench.api_streams import bench_streams
from bench.contract import RESULTS


def main() -> None:
    """Run the parts asked for, each on a database of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="as above; all by default")
    parser.add_argument("--jobs", type=int, default=100_000, help="of the scale part")
    parser.add_argument("--requests", type=int, default=600, help="of each loop over a route")
    parser.add_argument("--gguf", type=Path, help="a file to make estimates of too")
    asked = parser.parse_args()
    parts: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "routes": lambda bench: bench_routes(bench, requests=asked.requests),
        "estimates": lambda bench: bench_estimates(bench, gguf=asked.gguf),
        "streams": bench_streams,
        "downloads": bench_downloads,
        "scale": lambda bench: bench_scale(bench, num_jobs=asked.jobs, requests=asked.requests),
    }
    path = RESULTS / "api.json"
    for name in asked.parts or parts:
        with tempfile.TemporaryDirectory(prefix="espalier-bench-") as directory:
            load = psutil.getloadavg()
            with furnished(Path(directory)) as bench:
                found = parts[name](bench)
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept[name] = {**found, "load_before": load, "cpus": len(psutil.Process().cpu_affinity())}
        path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
