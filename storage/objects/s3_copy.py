"""Copy an object within S3 unless the target exists; the bytes do not leave the service.

A plain CopyObject replaces what stands there. A multipart upload of one part that is copied ends in a request that takes
`If-None-Match: *`, as a put does, so that nothing published is ever replaced. Three requests.
"""

import contextlib
from typing import Any

MOST_BYTES = 5 << 30  # of one copied part


def copy_exclusively(filesystem: Any, existing: str, path: str) -> None:
    """Copy `bucket/key` to another one on an s3fs file system; raise FileExistsError when that exists, FileNotFoundError, OSError."""
    (from_bucket, _, from_key), (bucket, _, key) = existing.partition("/"), path.partition("/")
    target = {"Bucket": bucket, "Key": key}
    target["UploadId"] = filesystem.call_s3("create_multipart_upload", **target)["UploadId"]
    try:
        copied = filesystem.call_s3("upload_part_copy", **target, PartNumber=1, CopySource={"Bucket": from_bucket, "Key": from_key})
        parts = {"Parts": [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}]}
        filesystem.call_s3("complete_multipart_upload", **target, MultipartUpload=parts, IfNoneMatch="*")
    except BaseException:
        with contextlib.suppress(Exception):  # unfinished uploads cost storage; a lifecycle rule removes what stays
            filesystem.call_s3("abort_multipart_upload", **target)
        raise
