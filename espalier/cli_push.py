"""`espalier push`: a checkpoint to a model hub, with its card, licence and exports."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from espalier.client import Client
from espalier.errors import ChecksumMismatch, EspalierError
from espalier.operations import TRAINING_STATE
from espalier.output import AsJson

publishing = typer.Typer()

_MANIFEST = "manifest.json"
_CARD = "README.md"
_UNKNOWN_LICENCE = "license_name: same-as-base-model"


@publishing.command()
def push(
    source: Annotated[
        str, typer.Argument(help="A downloaded checkpoint's directory, a checkpoint, or a job.")
    ],
    repository: Annotated[str, typer.Argument(help="Where to put it: org/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="A repository made for this is private otherwise.")
    ] = False,
    branch: Annotated[str | None, typer.Option(help="The default branch otherwise.")] = None,
    exports: Annotated[bool, typer.Option(help="Send the exports for other engines too.")] = True,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "Publish a pruned model",
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint on a model hub. Its token is HF_TOKEN's, or that of `hf auth login`."""
    with tempfile.TemporaryDirectory(prefix="espalier-push-") as scratch:
        directory = Path(source)
        if not directory.is_dir():
            directory = _download(source, Path(scratch))
        files = check(directory, exports=exports)
        if _UNKNOWN_LICENCE in (directory / _CARD).read_text(encoding="utf-8"):
            typer.echo(
                "espalier push: the base model's card names no licence; look it up, and say it in "
                "the repository's README.md",
                err=True,
            )
        commit = upload(
            directory, files, repository, private=not public, branch=branch, message=message
        )
    if as_json:
        found = {"repository": repository, "commit": commit, "files": files}
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo(f"{len(files)} files in {repository}: {commit}")


def _download(source: str, directory: Path) -> Path:
    """A checkpoint, or the last one of a job."""
    with Client() as client:
        if source.startswith("job_"):
            published = client.list_checkpoints(source)
            if not published:
                raise EspalierError(f"{source} has published no checkpoint yet")
            source = published[-1].id
        client.download(source, directory)
    return directory


def check(directory: Path, *, exports: bool) -> list[str]:
    """The files to publish, each as the manifest has it.

    Raises:
        EspalierError: this is no checkpoint, or it has no model card.
        ChecksumMismatch: a file is missing or is another one.
    """
    manifest = directory / _MANIFEST
    if not manifest.is_file():
        raise EspalierError(f"{directory} has no {_MANIFEST}: not a checkpoint of Espalier")
    listed: dict[str, dict[str, Any]] = json.loads(manifest.read_bytes())["files"]
    left_out = (TRAINING_STATE,) if exports else (TRAINING_STATE, "exports/")
    wanted = sorted(name for name in listed if not name.startswith(left_out))
    if _CARD not in wanted:
        raise EspalierError(f"{directory} has no model card ({_CARD})")
    for name in wanted:
        path = directory / name
        if not path.is_file() or _sha256(path) != listed[name]["sha256"]:
            raise ChecksumMismatch(f"{name}: missing, or not the file of the manifest")
    return [*wanted, _MANIFEST]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload(
    directory: Path,
    files: list[str],
    repository: str,
    *,
    private: bool,
    branch: str | None,
    message: str,
) -> str:
    """Make the repository where there is none, and commit the files at once; the commit's URL.

    Raises:
        EspalierError: huggingface_hub is missing, or the hub refused.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise EspalierError("pip install 'espalier[push]' to publish on a hub") from error
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if branch is not None:
            hub.create_branch(repository, branch=branch, exist_ok=True)
        operations = [CommitOperationAdd(name, directory / name) for name in files]
        commit = hub.create_commit(repository, operations, commit_message=message, revision=branch)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise EspalierError(f"the hub refused {repository}: {error}") from error
    return str(commit.commit_url)
