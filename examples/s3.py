"""The same on S3: write to a bucket, fit from it, stream predictions back.

Starts an S3 server of its own on the loopback interface (moto, from the extra "dev"), so that it
runs anywhere; with a real bucket, leave out the server and name your `storage_options`.
"""

from __future__ import annotations

import logging

import numpy as np
import zarr

import daskdml
from daskdml.io import write_dataset

try:
    import s3fs
    from moto.server import ThreadedMotoServer
except ImportError as missing:
    raise SystemExit(
        f"skipped: {missing.name} is not installed; pip install 'daskdml[s3]' 'moto[server]'"
    ) from None


def main() -> None:
    """Run against a server in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "x", "secret": "y", "endpoint_url": f"http://{host}:{port}"}
    try:
        s3fs.S3FileSystem(**options).mkdir("example")
        fit_and_predict("s3://example", options)
    finally:
        server.stop()


def fit_and_predict(bucket: str, options: dict[str, str]) -> None:
    """Write, fit and predict, all of it in a bucket."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50_000, 10), dtype=np.float32)
    y = X @ np.arange(10.0) + rng.standard_normal(len(X)) + 3.0
    print(write_dataset(f"{bucket}/train.zarr", X, y, chunks=5_000, storage_options=options))

    ridge = daskdml.Ridge(alpha=1.0).fit(f"{bucket}/train.zarr", storage_options=options)
    print(f"certificate: {ridge.certificate_}")
    print(f"bytes read: {ridge.bytes_read_:,}")

    url = f"{bucket}/predicted.zarr"
    ridge.predict(f"{bucket}/train.zarr", storage_options=options, out=url)
    predicted = zarr.open_array(url, mode="r", storage_options=options)[:]
    print(f"largest difference to NumPy: {np.abs(predicted - ridge.predict(X)).max():.1e}")


if __name__ == "__main__":
    main()
