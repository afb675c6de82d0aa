"""Objects of an S3 bucket, through boto3."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

import boto3
import botocore.config
import botocore.exceptions

from engine.errors import ObjectMissing, PlaceError, StoreError, TransientError
from engine.objects.keys import byte_order

_CONFLICT_CODES = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
_BEYOND_CODES = frozenset({"InvalidRange", "416"})
_TRANSIENT_CODES = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "InternalError", "ServiceUnavailable"}
)
# Refusals of one object; all others are about the bucket or the credentials.
_OBJECT_CODES = frozenset({"InvalidObjectState", "KeyTooLongError"})
# A body that was cut short, or is not the one that its checksum was made of.
_CUT_BODY = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.FlexibleChecksumError,
)
_MAX_WAIT_S = 5.0
# A request fails after this long without a byte; botocore retries it with back-off, ten attempts in all.
_TIMEOUT_S = 30
_ATTEMPTS = 10
# S3 accepts 10,000 parts, so an object may have 160 GB.
_PART_BYTES = 16 << 20


class S3Objects:
    """Objects of an S3 bucket below a prefix."""

    def __init__(
        self, bucket: str, prefix: str, *, attempts: int = _ATTEMPTS, part_bytes: int = _PART_BYTES
    ) -> None:
        """`attempts` is the most requests per call; `part_bytes` the size of the parts of large objects."""
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._attempts = attempts
        self._part_bytes = part_bytes
        self._connection: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    @property
    def uri(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def _client(self) -> Any:
        if self._connection is None:
            config = botocore.config.Config(
                connect_timeout=_TIMEOUT_S,
                read_timeout=_TIMEOUT_S,
                retries={"mode": "standard", "max_attempts": self._attempts},
            )
            try:
                self._connection = boto3.Session().client("s3", config=config)
            except ValueError as error:
                raise PlaceError(f"cannot use S3: {error} (AWS_ENDPOINT_URL)") from error
        return self._connection

    def read(self, key: str) -> bytes:
        with self._translated_errors(key):
            return self._read_body(
                lambda: self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            )

    def read_range(self, key: str, start: int, size: int) -> bytes:
        with self._translated_errors(key):
            try:
                return self._read_body(
                    lambda: self._client.get_object(
                        Bucket=self._bucket, Key=self._prefix + key, Range=f"bytes={start}-{start + size - 1}"
                    )
                )
            except botocore.exceptions.ClientError as error:
                if error.response["Error"]["Code"] in _BEYOND_CODES:
                    return b""
                raise

    def _read_body(self, ask: Callable[[], Any]) -> bytes:
        """Read the body of an answer; ask again if it is cut short, which botocore does not."""
        for attempt in range(self._attempts):
            try:
                answer = ask()
                data: bytes = answer["Body"].read()
                # botocore checks this too, but not for every kind of stream.
                expected = int(answer.get("ContentLength", len(data)))
                if len(data) != expected:
                    raise botocore.exceptions.IncompleteReadError(
                        actual_bytes=len(data), expected_bytes=expected
                    )
                return data
            except _CUT_BODY:
                if attempt + 1 == self._attempts:
                    raise
                time.sleep(min(0.05 * 2**attempt, _MAX_WAIT_S))
        raise AssertionError("the last attempt returns or raises")

    def size(self, key: str) -> int:
        with self._translated_errors(key):
            answer = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
            return int(answer["ContentLength"])

    def write(self, key: str, data: bytes) -> None:
        with self._translated_errors(key):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    @contextmanager
    def writer(self, key: str) -> Iterator[BinaryIO]:
        with self._translated_errors(key):
            place = {"Bucket": self._bucket, "Key": self._prefix + key}
            parts = _Parts(self._client, place, self._part_bytes)
            try:
                yield cast(BinaryIO, parts)
                parts.complete()
            except BaseException:
                parts.abort()
                raise

    def create(self, key: str, data: bytes) -> bool:
        with self._translated_errors(key):
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._prefix + key, Body=data, IfNoneMatch="*"
                )
            except botocore.exceptions.ClientError as error:
                code = error.response["Error"]["Code"]
                if code in _CONFLICT_CODES:
                    return False
                if code != "NotImplemented":
                    raise
                # The server has no conditional writes. Competing writers write the same bytes here.
                self.write(key, data)
        return True

    def delete(self, key: str) -> None:
        with self._translated_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def keys(self, prefix: str = "", start_after: str = "") -> Iterator[str]:
        request = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        if start_after:
            request["StartAfter"] = self._prefix + start_after
        with self._translated_errors(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(**request):
                for entry in page.get("Contents", ()):
                    key = entry["Key"].removeprefix(self._prefix)
                    # Some servers ignore StartAfter; "folder/" markers are not objects.
                    if key and not key.endswith("/") and byte_order(key) > byte_order(start_after):
                        yield key

    @contextmanager
    def _translated_errors(self, key: str) -> Iterator[None]:
        place = f"s3://{self._bucket}/{self._prefix}{key}"
        try:
            yield
        except botocore.exceptions.ClientError as error:
            raise _client_error(error, place) from error
        except (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError) as error:
            raise PlaceError(
                f"no S3 credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.IncompleteReadError,
            botocore.exceptions.ResponseStreamingError,
            botocore.exceptions.FlexibleChecksumError,
        ) as error:
            raise TransientError(f"no answer for {place}: {type(error).__name__}") from error
        except botocore.exceptions.ParamValidationError as error:
            raise StoreError(f"cannot use {place}: {error}") from error
        except botocore.exceptions.BotoCoreError as error:
            raise PlaceError(f"cannot use {place}: {error}") from error


class _Parts(io.RawIOBase):
    """An object that is uploaded while it is written: in parts, or in one request if it fits in one part."""

    def __init__(self, client: Any, place: dict[str, str], part_bytes: int) -> None:
        self._client = client
        self._place = place
        self._part_bytes = part_bytes
        self._held = bytearray()
        self._upload: dict[str, str] | None = None
        self._tags: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        while len(self._held) >= self._part_bytes:
            self._send(bytes(self._held[: self._part_bytes]))
            del self._held[: self._part_bytes]
        return len(data)

    def complete(self) -> None:
        """Upload the rest; from then on the object exists."""
        if self._upload is None:
            self._client.put_object(**self._place, Body=bytes(self._held))
            return
        if self._held:
            self._send(bytes(self._held))
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(self._tags, start=1)]
        self._client.complete_multipart_upload(**self._upload, MultipartUpload={"Parts": parts})

    def abort(self) -> None:
        """Delete the uploaded parts."""
        if self._upload is not None:
            # An error here must not hide the one that caused the abort.
            with suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                self._client.abort_multipart_upload(**self._upload)

    def _send(self, part: bytes) -> None:
        if self._upload is None:
            answer = self._client.create_multipart_upload(**self._place)
            self._upload = {**self._place, "UploadId": answer["UploadId"]}
        answer = self._client.upload_part(**self._upload, PartNumber=len(self._tags) + 1, Body=part)
        self._tags.append(answer["ETag"])


def _client_error(error: botocore.exceptions.ClientError, place: str) -> Exception:
    """Translate an error response of S3."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING_CODES:
        return ObjectMissing(f"no object {place}")
    if code == "NoSuchBucket":
        return PlaceError(f"no such bucket: {place}; create it or correct the name")
    if code in _TRANSIENT_CODES or status >= 500:
        return TransientError(f"{place} answered {code or status}")
    if code in _OBJECT_CODES:
        return StoreError(f"{place} answered {code}")
    return PlaceError(f"{place} answered {code or status}: check the credentials, the endpoint and the name")
