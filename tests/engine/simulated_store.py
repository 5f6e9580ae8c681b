"""An object store in this process, which answers as a simulation likes: late, never, or again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem

Answer = Callable[[str, str, Callable[[], Any]], Any]


def at_once(operation: str, path: str, act: Callable[[], Any]) -> Any:
    """What a store that has no troubles does."""
    return act()


class SimulatedStore(AsyncFileSystem):
    """``simulated://``: objects of this process; `answer` decides what becomes of each request."""

    protocol = "simulated"
    objects: ClassVar[dict[str, bytes]] = {}
    answer: ClassVar[Answer] = staticmethod(at_once)

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        path = self._strip_protocol(path)
        return type(self).answer("read", path, lambda: self._object(path)[start:end])

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any):
        path = self._strip_protocol(path)
        type(self).answer("write", path, lambda: self.objects.__setitem__(path, bytes(value)))

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        return type(self).answer("look", path, lambda: self._about(path))

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        names = type(self).answer("list", path, lambda: self._children(path))
        return [self._about(name) for name in names] if detail else names

    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        path = self._strip_protocol(path)
        type(self).answer("remove", path, lambda: self._drop(path))

    async def _rm(self, path: Any, recursive: bool = False, **kwargs: Any) -> None:
        for root in [path] if isinstance(path, str) else path:
            name = self._strip_protocol(root)
            type(self).answer("remove", name, lambda name=name: self._drop(name, below=recursive))

    def _object(self, path: str) -> bytes:
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def _about(self, path: str) -> dict[str, Any]:
        if path in self.objects:
            return {"name": path, "size": len(self.objects[path]), "type": "file"}
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def _children(self, path: str) -> list[str]:
        start = f"{path}/" if path else ""
        below = [name[len(start) :] for name in self.objects if name.startswith(start)]
        if not below and path not in self.objects:
            raise FileNotFoundError(path)
        return [start + name for name in sorted({n.partition("/")[0] for n in below}) if name]

    def _drop(self, path: str, below: bool = False) -> None:
        known = len(self.objects)
        self.objects.pop(path, None)
        if below:
            for name in [n for n in self.objects if n.startswith(f"{path}/")]:
                del self.objects[name]
        if len(self.objects) == known:
            raise FileNotFoundError(path)


fsspec.register_implementation("simulated", SimulatedStore, clobber=True)
