"""Whole objects of S3, streamed piece by piece by botocore's own client.

s3fs collects a body in an event loop, in many small pieces, and joins them: three objects of 84 MB took 2.6 s here, half a second of it
on our processor. botocore's synchronous client takes 0.7 s and a tenth of a second (obstore: 0.8 s and a tenth). It is what s3fs signs
with, so that credentials, profiles and endpoints are found in one and the same way; obstore knows no profiles and was refused for that.
One try a call: retries are `remote.persist`'s.
"""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

_PIECE_BYTES = 1 << 20
_TIMEOUTS = {"read_timeout": 60, "connect_timeout": 10}


class WholeObjects:
    """GETs of whole objects with the settings of an s3fs file system; safe to use from several threads."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem
        self._lock = threading.Lock()
        self._client: Any = None
        self._process = -1

    def _connected(self) -> Any:
        """The client, made at the first use: it costs a tenth of a second."""
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        with self._lock:
            if self._process != os.getpid():  # a fork shares its parent's connections
                given = self._filesystem
                signature = {"signature_version": UNSIGNED} if given.anon else {}
                self._client = botocore.session.Session(profile=given.kwargs.get("profile")).create_client(
                    "s3",
                    config=Config(retries={"total_max_attempts": 1}, **_TIMEOUTS, **signature),
                    endpoint_url=given.endpoint_url or given.client_kwargs.get("endpoint_url"),
                    aws_access_key_id=given.key,
                    aws_secret_access_key=given.secret,
                    aws_session_token=given.token,
                    region_name=given.client_kwargs.get("region_name"),
                )
                self._process = os.getpid()
            return self._client

    def pieces(self, path: str, accept: Callable[[int], None] = lambda size: None) -> Iterator[memoryview]:
        """The bytes of `bucket/key` in order; each piece is overwritten by the next. `accept` may refuse an object by its size.

        Raises FileNotFoundError, PermissionError, and OSError when the body ends early.
        """
        from botocore.exceptions import ClientError
        from s3fs.errors import translate_boto_error

        bucket, _, key = path.partition("/")
        try:
            reply = self._connected().get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            raise translate_boto_error(error) from error
        missing = int(reply["ContentLength"])
        with reply["Body"] as body:
            accept(missing)
            memory = memoryview(bytearray(min(missing, _PIECE_BYTES)))
            while count := body.readinto(memory):
                missing -= count
                yield memory[:count]
        if missing:
            raise OSError(f"the body ended {missing:,} bytes early")


_made: dict[int, WholeObjects] = {}


def whole_objects(filesystem: Any) -> WholeObjects:
    """One client for all stores behind a file system, which fsspec shares too: making one takes longer than fetching a shard.

    By the object and not by fsspec's equality: two that are made with the same words under another endpoint in the environment are equal.
    """
    return _made.setdefault(id(filesystem), WholeObjects(filesystem))  # holds the file system, so that its number is not given again
