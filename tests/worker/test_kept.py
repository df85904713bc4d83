from datetime import UTC, datetime
from pathlib import Path

from pruning.manifest import Lineage, Manifest, digest_file, write_manifest
from pruning.plan import PruningPlan
from pruning.recipe import Recipe
from worker import kept


def make_partial(
    out_dir: Path, increment: int, content: str, *, parent_sha256: str | None = None
) -> Path:
    directory = out_dir / f"partial-{increment:04d}"
    directory.mkdir(parents=True)
    (directory / "weights").write_text(content)
    manifest = Manifest(
        increment=increment,
        step=1,
        num_tokens=1,
        num_parameters=1,
        base_num_parameters=1,
        target_num_parameters=1,
        num_bytes=1,
        dtype="float32",
        final=False,
        outcome=None,
        widths=(),
        measurements=(),
        lineage=Lineage(model="m", model_revision=None, parent_manifest_sha256=parent_sha256),
        data_fingerprint="0",
        recipe=Recipe.model_validate({"model": "/m", "target": "30%", "data": "/d"}),
        plan=PruningPlan.keep_all(num_layers=1, intermediate_size=8, num_kv_groups=1),
        versions={},
        created_at=datetime.now(UTC),
        files={"weights": digest_file(directory / "weights")},
    )
    write_manifest(manifest, directory)
    return directory


def test_only_the_newest_increment_in_progress_is_rescued(tmp_path: Path) -> None:
    job_dir = tmp_path / "job"
    # A damaged head can throw a job back: newer is not what has the higher number.
    make_partial(job_dir / "kept", 3, "old")
    make_partial(job_dir / "000007" / "out", 2, "new")
    (job_dir / "000007" / "resume").mkdir()
    kept.rescue(job_dir)
    assert [path.relative_to(job_dir).as_posix() for path in job_dir.rglob("weights")] == [
        "kept/partial-0002/weights"
    ]
    assert len(list(job_dir.iterdir())) == 1


def test_a_directory_without_any_is_removed(tmp_path: Path) -> None:
    (tmp_path / "job" / "000001" / "out" / ".partial-0001").mkdir(parents=True)
    kept.rescue(tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_an_attempt_that_is_over_keeps_its_newest_increment_in_progress(tmp_path: Path) -> None:
    directory = tmp_path / "job" / "000001"
    make_partial(directory / "out", 2, "state")
    kept.leave(directory, goes_on=True)
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["kept"]
    assert (tmp_path / "job" / "kept" / "partial-0002" / "weights").read_text() == "state"


def test_a_job_that_is_over_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "job" / "000001"
    make_partial(directory / "out", 2, "state")
    make_partial(tmp_path / "job" / "kept", 1, "state")
    kept.leave(directory, goes_on=False)
    assert not (tmp_path / "job").exists()


def test_an_attempt_that_lost_its_lease_leaves_its_successor_alone(tmp_path: Path) -> None:
    zombie, successor = tmp_path / "000001", tmp_path / "000002"
    make_partial(zombie / "out", 2, "state")
    make_partial(successor / "out", 2, "state")
    kept.leave(zombie, goes_on=False)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    assert (successor / "out" / "partial-0002" / "weights").exists()


def test_what_was_rescued_goes_where_the_next_child_looks(tmp_path: Path) -> None:
    make_partial(tmp_path / "kept", 2, "state", parent_sha256="1" * 64)
    out_dir = tmp_path / "000002" / "out"
    out_dir.mkdir(parents=True)
    kept.hand_over(tmp_path, out_dir)
    assert (out_dir / "partial-0002" / "weights").read_text() == "state"


def test_only_the_first_increment_can_be_gone_on_with_without_a_checkpoint(tmp_path: Path) -> None:
    make_partial(tmp_path / "a" / "kept", 1, "state")
    make_partial(tmp_path / "b" / "kept", 2, "state", parent_sha256="1" * 64)
    assert kept.hand_over(tmp_path / "a", tmp_path) == tmp_path / "partial-0001"
    assert kept.hand_over(tmp_path / "b", tmp_path) is None


def test_a_damaged_one_is_not_handed_over(tmp_path: Path) -> None:
    (make_partial(tmp_path / "kept", 2, "state") / "weights").write_text("other")
    assert kept.hand_over(tmp_path, tmp_path) is None
