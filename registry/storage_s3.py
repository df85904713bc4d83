"""The artifact store on S3 and what speaks like it: `s3://bucket/prefix`.

Endpoint, region and credentials come from boto3's own settings (`AWS_ENDPOINT_URL_S3`,
`AWS_ACCESS_KEY_ID`, …). An upload is visible whole or not at all; large files go in parts, each
checked by the server against its SHA-256.
"""

import base64
import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import boto3  # type: ignore[import-untyped]  # untyped there
from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

from registry.errors import ArtifactsAway, BlobCorrupt, BlobNotFound
from registry.storage import CHUNK_BYTES, Entry, StoredBlob, hash_file, require_digest

PART_BYTES = 64 << 20
_URL_SECONDS = 3600
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


class S3Store:
    """Blobs under `prefix/sha256/ab/abcd…` of a bucket, which must exist."""

    def __init__(
        self, client: Any, bucket: str, prefix: str = "", *, part_bytes: int = PART_BYTES
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self._client = client
        self._part_bytes = part_bytes

    def key_of(self, sha256: str) -> str:
        """The key of a blob of that digest, whether or not it exists."""
        require_digest(sha256)
        return f"{self._root}sha256/{sha256[:2]}/{sha256}"

    @property
    def _root(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def put_file(self, path: Path) -> StoredBlob:
        # Named by its digest, so that must be known first; the server checks it on arrival.
        blob = hash_file(path)
        if self._size_of(blob.sha256) == blob.num_bytes:
            return blob
        with path.open("rb") as file:
            if blob.num_bytes <= self._part_bytes:
                self._put_whole(blob, file)
            else:
                self._put_in_parts(blob, file)
        return blob

    def _put_whole(self, blob: StoredBlob, file: BinaryIO) -> None:
        checksum = base64.b64encode(bytes.fromhex(blob.sha256)).decode()
        self._call(
            "put_object",
            Key=self.key_of(blob.sha256),
            Body=file.read(),
            ChecksumSHA256=checksum,
        )

    def _put_in_parts(self, blob: StoredBlob, file: BinaryIO) -> None:
        key = self.key_of(blob.sha256)
        upload = self._call("create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256")
        name = {"Key": key, "UploadId": upload["UploadId"]}
        try:
            whole, parts = self._upload_parts(name, file)
            if whole != blob.sha256:
                raise BlobCorrupt(f"the file of blob {blob.sha256} changed while it was stored")
            self._call("complete_multipart_upload", **name, MultipartUpload={"Parts": parts})
        except BaseException:
            self._call("abort_multipart_upload", **name)
            raise

    def _upload_parts(
        self, name: dict[str, str], file: BinaryIO
    ) -> tuple[str, list[dict[str, Any]]]:
        whole = hashlib.sha256()
        parts: list[dict[str, Any]] = []
        while piece := file.read(self._part_bytes):
            whole.update(piece)
            number = len(parts) + 1
            checksum = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            done = self._call(
                "upload_part", **name, PartNumber=number, Body=piece, ChecksumSHA256=checksum
            )
            parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": checksum})
        return whole.hexdigest(), parts

    def exists(self, sha256: str) -> bool:
        return self._size_of(sha256) is not None

    def _size_of(self, sha256: str) -> int | None:
        try:
            return int(self._call("head_object", Key=self.key_of(sha256))["ContentLength"])
        except BlobNotFound:
            return None

    def open_range(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if end is not None and end <= start:
            return
        last = "" if end is None else str(end - 1)
        asked = {"Range": f"bytes={start}-{last}"} if start or end is not None else {}
        try:
            body = self._call("get_object", Key=self.key_of(sha256), **asked)["Body"]
            yield from body.iter_chunks(CHUNK_BYTES)
        except BotoCoreError as error:
            raise ArtifactsAway(f"{self.bucket}: {type(error).__name__}") from error

    def fetch(self, sha256: str, destination: Path) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with destination.open("wb") as file:
                for piece in self.open_range(sha256):
                    digest.update(piece)
                    file.write(piece)
            if digest.hexdigest() != sha256:
                raise BlobCorrupt(f"blob {sha256} holds bytes of digest {digest.hexdigest()}")
        except BaseException:
            destination.unlink(missing_ok=True)
            raise

    def local_path(self, sha256: str) -> Path | None:  # noqa: ARG002  # The protocol's signature.
        return None

    def download_url(self, sha256: str, *, file_name: str, seconds: int = _URL_SECONDS) -> str:
        """A URL under which anyone may read the blob until it expires, ranges too."""
        disposition = f'attachment; filename="{file_name}"'
        url: str = self._client.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self.bucket,
                "Key": self.key_of(sha256),
                "ResponseContentDisposition": disposition,
            },
            ExpiresIn=seconds,
        )
        return url

    def require_space(self, num_bytes: int) -> None:  # noqa: ARG002  # The protocol's signature.
        # A bucket does not fill up; that it can be reached is worth knowing before the work.
        self._call("head_bucket")

    def delete(self, sha256: str) -> None:
        self._call("delete_object", Key=self.key_of(sha256))

    def entries(self) -> Iterator[Entry]:
        for page in self._pages("list_objects_v2", Prefix=f"{self._root}sha256/"):
            for found in page.get("Contents", ()):
                name = found["Key"].rpartition("/")[2]
                yield Entry(name, found["Size"], found["LastModified"])

    def discard_partial(self, before: datetime) -> int:
        old = [
            {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            for page in self._pages("list_multipart_uploads", Prefix=f"{self._root}sha256/")
            for upload in page.get("Uploads", ())
            if upload["Initiated"] < before
        ]
        for upload in old:
            self._call("abort_multipart_upload", **upload)
        return len(old)

    def _pages(self, operation: str, **asked: Any) -> Iterator[dict[str, Any]]:
        try:
            yield from self._client.get_paginator(operation).paginate(Bucket=self.bucket, **asked)
        except (BotoCoreError, ClientError) as error:
            raise ArtifactsAway(f"{self.bucket}: {type(error).__name__}") from error

    def _call(self, operation: str, **asked: Any) -> Any:
        try:
            return getattr(self._client, operation)(Bucket=self.bucket, **asked)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in _MISSING and "Key" in asked:
                raise BlobNotFound(f"no {asked['Key']} in bucket {self.bucket}") from error
            raise ArtifactsAway(f"{self.bucket}: {operation}: {code}") from error
        except BotoCoreError as error:
            raise ArtifactsAway(f"{self.bucket}: {type(error).__name__}") from error


def open_s3(bucket: str, prefix: str) -> S3Store:
    """The store in a bucket, by boto3's own settings."""
    config = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard"})
    return S3Store(boto3.client("s3", config=config), bucket, prefix)
