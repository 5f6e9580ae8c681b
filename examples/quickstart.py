"""The library in twenty lines: write rows, fit out of core, read the certificate, predict."""

import tempfile

import numpy as np

import daskdml
from daskdml.io import open_dataset, train_test_split, write_dataset

rng = np.random.default_rng(0)
X = rng.standard_normal((200_000, 20), dtype=np.float32)
y = np.where(X @ rng.standard_normal(20) + rng.logistic(size=len(X)) > 0, "yes", "no")

with tempfile.TemporaryDirectory() as folder:
    write_dataset(f"{folder}/rows.zarr", X, y, chunks=20_000)
    rows = open_dataset(f"{folder}/rows.zarr")
    train, test = train_test_split(rows, test_size=0.2, random_state=0)
    with daskdml.Engine(memory_limit="1GB"):
        clf = daskdml.LogisticRegression(C=1.0, tol=1e-6).fit(train)
    print(rows)
    print(f"certificate: {clf.certificate_}")
    print(f"passes: {clf.n_passes_:.2f}, bytes read: {clf.bytes_read_:,}")
    labels = clf.predict(test)  # a Dask array: nothing has been read yet
    print(f"predicted: {labels[:5].compute().tolist()}, accuracy: {clf.score(test):.4f}")
