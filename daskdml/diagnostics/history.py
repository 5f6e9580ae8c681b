"""The passes of a fit, as a list that can become a table or a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from daskdml.diagnostics.convergence import plot_convergence


class History(list[Any]):
    """One record per pass or round of a fit.

    Examples
    --------
    >>> import numpy as np
    >>> from daskdml import Ridge
    >>> history = Ridge().fit(np.eye(3), np.arange(3.0)).history_
    >>> history.to_frame().columns[:4].tolist()
    ['label', 'seconds', 'nbytes', 'passes']
    """

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row per record."""
        import pandas as pd

        return pd.DataFrame([asdict(record) for record in self])

    def plot(self, figure: Any = None) -> Any:
        """Certified gap (or gradient's norm), objective and validation score; returns the figure.

        Each against seconds and, where they grew, bytes read.
        """
        return plot_convergence(self, figure)
