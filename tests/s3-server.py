"""An S3 server for the tests, with a user whose requests must be signed.

    s3-server.py BUCKET

Runs moto's server on a free port of loopback, makes the bucket and a user who may do anything
with it, and from then on refuses whatever is not signed with that user's key. Prints one line of
JSON with the port and the key, and serves until its standard input ends.
"""

import json
import os
import sys

# How many requests need no signature: those below.
REQUESTS = 4
os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = str(REQUESTS)

import boto3  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402

ALL = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}


def main() -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()

    def client(service: str):
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="anybody",
            aws_secret_access_key="anything",
        )

    iam = client("iam")
    iam.create_user(UserName="tracker")
    iam.put_user_policy(
        UserName="tracker", PolicyName="all", PolicyDocument=json.dumps(ALL)
    )
    key = iam.create_access_key(UserName="tracker")["AccessKey"]
    client("s3").create_bucket(Bucket=sys.argv[1])
    answer = {
        "port": port,
        "access_key_id": key["AccessKeyId"],
        "secret_access_key": key["SecretAccessKey"],
    }
    print(json.dumps(answer), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
