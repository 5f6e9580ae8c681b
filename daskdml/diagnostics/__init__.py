"""Floor 4: what a person sees. Diagnostics import events; nobody imports them."""

from daskdml.diagnostics.convergence import plot_convergence
from daskdml.diagnostics.progress import ProgressBar
from daskdml.diagnostics.timeline import Timeline

__all__ = ["ProgressBar", "Timeline", "plot_convergence"]
