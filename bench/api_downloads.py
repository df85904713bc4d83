"""One large file, by the API and by nginx from the very same bytes."""

import hashlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from bench.api_load import cpu_seconds, download
from bench.api_site import ROUNDS, Bench, bar, wait_for
from registry.db import transaction
from registry.storage import LocalStore
from tests.api.served import serving
from tests.factories import make_checkpoint, make_job, start_job
from tests.servers import die_with_parent, free_port

FILE_BYTES = 512 << 20


def bench_downloads(bench: Bench) -> dict[str, Any]:
    """One large file, by the API and by nginx from the very same bytes."""
    content = bench.directory / "large"
    with content.open("wb") as file:
        for number in range(FILE_BYTES >> 20):
            file.write(hashlib.sha256(str(number).encode()).digest() * (1 << 15))
    store = LocalStore(bench.settings.data_dir / "artifacts")
    blob = store.put_file(content)
    with transaction(bench.factory) as session:
        job = make_job(session, bench.holder.tenant_id)
        start_job(session, job)
        checkpoint = make_checkpoint(session, store, job, bench.directory, files={"small": b"x"})
        for statement in (
            "INSERT INTO blobs VALUES (:sha, :size, 'stored', now())",
            "INSERT INTO checkpoint_files VALUES (:id, 'large', :sha, :size)",
        ):
            values = {"sha": blob.sha256, "size": blob.num_bytes, "id": checkpoint.id}
            session.execute(text(statement), values)
    path = f"/v1/checkpoints/{checkpoint.id}/files/large"
    local = store.local_path(blob.sha256)
    assert local is not None
    with serving(bench.settings) as api, nginx(local.parent, bench.directory) as other:
        download(api.url, path, bench.holder.secret)
        download(other, f"/{local.name}", "")
        before, spent = psutil.Process(api.pid).memory_info().rss, cpu_seconds(api.pid)
        pairs = [
            (download(api.url, path, bench.holder.secret), download(other, f"/{local.name}", ""))
            for _ in range(ROUNDS)
        ]
        spent = cpu_seconds(api.pid) - spent
        grown = psutil.Process(api.pid).memory_info().rss - before
        exact = _cut_and_continued(f"{api.url}{path}", bench) == blob.sha256
    shares = [theirs[1] / ours[1] for ours, theirs in pairs]
    found: dict[str, Any] = {
        "bytes": FILE_BYTES,
        "share": statistics.median(shares),
        "api_mb_s": [round(ours[0] / ours[1] / 1e6) for ours, _ in pairs],
        "nginx_mb_s": [round(theirs[0] / theirs[1] / 1e6) for _, theirs in pairs],
        "cpu_s_per_gb": spent / ROUNDS / (FILE_BYTES / 1e9),
        "memory_grown_mb": grown / 1e6,
        "continued_exactly": exact,
    }
    bar("download: share of nginx's speed", found["share"], least=0.6)
    bar("download: MB of memory grown", found["memory_grown_mb"], most=30)
    bar("download: continued by curl -C - after a cut", float(exact), least=1.0)
    return found


@contextmanager
def nginx(root: Path, directory: Path) -> Iterator[str]:
    """Debian's nginx on a directory."""
    port, prefix = free_port(), directory / "nginx"
    prefix.mkdir()
    config = prefix / "nginx.conf"
    config.write_text(
        f"daemon off; pid {prefix}/pid; error_log {prefix}/error.log; worker_processes 1;\n"
        f"{'user root;' if Path('/root').owner() == 'root' else ''}\n"
        "events {}\n"
        f"http {{ access_log off; sendfile on; server {{ listen 127.0.0.1:{port}; "
        f"root {root}; }} }}\n"
    )
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx"
    process = subprocess.Popen(
        [program, "-p", str(prefix), "-c", str(config)], preexec_fn=die_with_parent()
    )
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _cut_and_continued(url: str, bench: Bench) -> str:
    """The digest of a download that was cut in the middle and taken up again."""
    target = bench.directory / "continued"
    curl = ["curl", "-sf", "-H", f"Authorization: Bearer {bench.holder.secret}", "-o", str(target)]
    first = subprocess.Popen([*curl, "--limit-rate", "100M", url])
    while not target.exists() or target.stat().st_size < FILE_BYTES // 4:
        time.sleep(0.02)
    first.kill()
    first.wait()
    subprocess.run([*curl, "-C", "-", url], check=True)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
