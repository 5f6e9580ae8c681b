"""Floor 2: the only floor that builds Dask tasks."""
