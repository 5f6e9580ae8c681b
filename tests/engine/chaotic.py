"""A runner under which everything goes wrong that may, by a seed."""

from __future__ import annotations

import numpy as np

from daskdml.engine.run import Inline


class Chaotic(Inline):
    """Runs tasks in a random order, some of them twice, and loses results it must make again."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.repeated = self.lost = 0

    def _get(self, graph, callbacks):
        done, waiting = {}, set(graph.tasks)
        while waiting - set(done):
            ready = [
                k for k in waiting if k not in done and graph.tasks[k].dependencies <= set(done)
            ]
            key = ready[self.random.integers(len(ready))]
            node = graph.tasks[key]
            values = {k: done[k] for k in node.dependencies}
            done[key] = node(values)
            if self.random.random() < 0.2:
                self.repeated += 1
                done[key] = node(values)
            if self.random.random() < 0.2:
                self.lost += 1
                del done[list(done)[self.random.integers(len(done))]]
        return [done[key] for key in (*graph.wanted, *graph.kept)]
