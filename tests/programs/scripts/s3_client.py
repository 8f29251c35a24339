"""An independent S3 client against the endpoint in argv: s3_client.py ENDPOINT BUCKET ACCESS SECRET full|race."""
import concurrent.futures
import sys

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

endpoint, bucket, access, secret, what = sys.argv[1:]
config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, region_name="us-east-1",
                max_pool_connections=20)
s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=access, aws_secret_access_key=secret, config=config)


def refused(call, *codes):
    try:
        call()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status in codes, (status, error)
        return True
    raise AssertionError(f"should have been refused with {codes}")


def race():
    """How many of 20 racing clients create one key that must not exist."""
    def create(i):
        try:
            s3.put_object(Bucket=bucket, Key="race", Body=b"%d" % i, IfNoneMatch="*")
            return 1
        except ClientError:
            return 0
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        return sum(pool.map(create, range(20)))


if what == "race":
    print(race())
    sys.exit()

assert race() == 1
s3.put_object(Bucket=bucket, Key="a/1", Body=b"0123456789", Metadata={"colour": "red"})
answer = s3.get_object(Bucket=bucket, Key="a/1", Range="bytes=2-5")
assert answer["Body"].read() == b"2345" and answer["ContentRange"] == "bytes 2-5/10"
head = s3.head_object(Bucket=bucket, Key="a/1")
assert head["ContentLength"] == 10 and head["Metadata"] == {"colour": "red"}
etag = head["ETag"]
s3.put_object(Bucket=bucket, Key="a/1", Body=b"new", IfMatch=etag)
refused(lambda: s3.put_object(Bucket=bucket, Key="a/1", Body=b"stale", IfMatch=etag), 412)
refused(lambda: s3.get_object(Bucket=bucket, Key="missing"), 404)
refused(lambda: s3.get_object(Bucket="missing", Key="a"), 404)
for i in range(2, 30):
    s3.put_object(Bucket=bucket, Key=f"a/{i}", Body=b"x" * i)
pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="a/", PaginationConfig={"PageSize": 7}))
assert len(pages) == 5 and sum(len(page["Contents"]) for page in pages) == 29
folders = s3.list_objects_v2(Bucket=bucket, Delimiter="/")["CommonPrefixes"]
assert folders == [{"Prefix": "a/"}], folders
upload = s3.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
pieces = [b"a" * (5 << 20), b"b" * 1000]
parts = [{"PartNumber": n, "ETag": s3.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=n, Body=piece)["ETag"]}
         for n, piece in enumerate(pieces, 1)]
s3.complete_multipart_upload(Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": parts})
assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"".join(pieces)
s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "a/9"})
assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"x" * 9
s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "copy"}, {"Key": "a/9"}]})
refused(lambda: s3.head_object(Bucket=bucket, Key="copy"), 404)
forged = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=access, aws_secret_access_key="forged", config=config)
refused(lambda: forged.put_object(Bucket=bucket, Key="forged", Body=b""), 403)
print("ok")
