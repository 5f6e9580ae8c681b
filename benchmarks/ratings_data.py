"""W4: ratings in the shape of MovieLens-20M, from a seeded low-rank model, as arrays or as CSV.

Nine tenths of the 20,000,000 leave a user 22 to 3,853 of them (median 78), an item 3 to 33,953
(median 48).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

TRUE_RANK = 16
NOISE = 0.76  # with the rounding to half steps, a perfect model's error is near 0.77
CSV_BLOCK = 500_000  # rows formatted at a time


@dataclass(frozen=True)
class RatingArrays:
    """Ratings in random order: `user`, `item` int64 ids, `rating` float32, `timestamp` int64."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray

    def __len__(self) -> int:
        return len(self.rating)

    def take(self, rows: np.ndarray) -> RatingArrays:
        """Some of the rows."""
        return RatingArrays(*(part[rows] for part in self._parts()))

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.user, self.item, self.rating, self.timestamp


@dataclass(frozen=True)
class RatingWorkload:
    """Seeded ratings with power-law popularity of users and items.

    Ratings are 0.5 ... 5 in half steps, of a mean, biases, a product of factors of rank 16 and
    noise; no pair occurs twice; ids are random 31-bit integers.

    Parameters
    ----------
    name : str
    users, items, ratings : int
        Drawn from; a user or an item without any rating is possible at small scales.
    seed : int
    """

    name: str
    users: int
    items: int
    ratings: int
    seed: int = 0

    def scaled(self, scale: float) -> RatingWorkload:
        """The same with `scale` times the ratings, and users and items by its root."""
        side = scale**0.5
        return replace(
            self,
            users=max(2, round(self.users * side)),
            items=max(2, round(self.items * side)),
            ratings=round(self.ratings * scale),
        )

    def generate(self) -> RatingArrays:
        """All ratings; 20,000,000 of them take 560 MB, and 1.2 GB while they are made."""
        rng = np.random.default_rng(self.seed)
        cells = self._cells(rng)
        user = (cells // self.items).astype(np.int32)
        item = (cells % self.items).astype(np.int32)
        del cells
        rating = self._ratings(rng, user, item)
        ids = [_ids(rng, n) for n in (self.users, self.items)]
        started = rng.integers(800_000_000, 1_400_000_000, self.users)
        timestamp = started[user] + rng.integers(0, 30_000_000, len(user))
        return RatingArrays(ids[0][user], ids[1][item], rating, timestamp)

    def _cells(self, rng: np.random.Generator) -> np.ndarray:
        """Different cells user * items + item, in random order."""
        heavy = _popularity(rng, self.users, 0.75, 50.0)
        liked = _popularity(rng, self.items, 2.0, 400.0)
        cells, share = np.empty(0, np.int64), 1.15
        while len(cells) < self.ratings:
            more = int((self.ratings - len(cells)) * share) + 1000
            drawn = _draw(rng, heavy, more).astype(np.int64) * self.items
            drawn += _draw(rng, liked, more)
            cells = np.concatenate([cells, drawn])
            cells.sort()
            cells = cells[np.concatenate([[True], cells[1:] != cells[:-1]])]
            share = 2.0
        rng.shuffle(cells)
        return cells[: self.ratings]

    def _ratings(self, rng: np.random.Generator, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        user_bias = rng.normal(0, 0.4, self.users).astype("f4")
        item_bias = rng.normal(0, 0.45, self.items).astype("f4")
        weight = np.geomspace(1, 0.2, TRUE_RANK)
        weight *= 0.5 / np.sqrt(np.sum(weight**2))  # the products' standard deviation
        P = (rng.standard_normal((self.users, TRUE_RANK)) * weight).astype("f4")
        Q = rng.standard_normal((self.items, TRUE_RANK)).astype("f4")
        out = np.empty(len(user), np.float32)
        for start in range(0, len(user), CSV_BLOCK):
            part = slice(start, start + CSV_BLOCK)
            u, i = user[part], item[part]
            z = 3.5 + user_bias[u] + item_bias[i] + np.einsum("nk,nk->n", P[u], Q[i])
            z += NOISE * rng.standard_normal(len(u), dtype="f4")
            out[part] = np.clip(np.round(2 * z) / 2, 0.5, 5)
        return out

    def write_csv(self, folder: Path) -> Path:
        """Write `userId,movieId,rating,timestamp` once; gives the file's path."""
        path = folder / f"{self.name}-{self.users}x{self.items}-{self.ratings}.csv"
        if path.exists():
            return path
        rows, temporary = self.generate(), path.with_suffix(".tmp")
        with temporary.open("w") as out:
            out.write("userId,movieId,rating,timestamp\n")
            for start in range(0, len(rows), CSV_BLOCK):
                part = rows.take(np.arange(start, min(start + CSV_BLOCK, len(rows))))
                columns = (c.tolist() for c in part._parts())
                out.writelines(f"{u},{i},{r},{t}\n" for u, i, r, t in zip(*columns, strict=True))
        temporary.rename(path)
        return path

    def write_grid(self, folder: Path) -> Path:
        """Write all ratings once, as daskdml's grid of blocks; gives its path."""
        from daskdml.io import convert_ratings

        path = folder / f"{self.name}-{self.ratings}.zarr"
        if not path.exists():
            drawn = self.generate()
            convert_ratings((drawn.user, drawn.item, drawn.rating), path)
        return path

    def write_split(self, folder: Path) -> Path:
        """Write `split`'s two parts once, ids as codes; gives a folder of .npy files.

        They are `{train,test}-{user,item,rating}.npy`: int32, int32, float32.
        """
        path = folder / f"{self.name}-{self.users}x{self.items}-{self.ratings}"
        if path.exists():
            return path
        train, test = split(self.generate())
        temporary = path.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name in ("user", "item"):
            for part, codes in zip(
                ("train", "test"), coded(getattr(train, name), getattr(test, name)), strict=True
            ):
                np.save(temporary / f"{part}-{name}.npy", codes)
        np.save(temporary / "train-rating.npy", train.rating)
        np.save(temporary / "test-rating.npy", test.rating)
        temporary.rename(path)
        return path


def load_split(path: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Users, items and ratings of `write_split`: to train on, and to test on."""
    parts = ("user", "item", "rating")
    train, test = ([np.load(path / f"{of}-{p}.npy") for p in parts] for of in ("train", "test"))
    return train, test


def split(rows: RatingArrays, seed: int = 0) -> tuple[RatingArrays, RatingArrays]:
    """Nine tenths to train on and a tenth to test on, drawn by the seed, their order kept."""
    test = np.zeros(len(rows), bool)
    test[np.random.default_rng(seed).permutation(len(rows))[: round(0.1 * len(rows))]] = True
    return rows.take(np.flatnonzero(~test)), rows.take(np.flatnonzero(test))


def coded(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ids as int32 codes of those in `train`, in order of id; -1 where an id is not there."""
    known, codes = np.unique(train, return_inverse=True)
    out = [codes.astype(np.int32)]
    for ids in others:
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        out.append(np.where(known[at] == ids, at, -1).astype(np.int32))
    return tuple(out)


def _popularity(rng: np.random.Generator, n: int, power: float, offset: float) -> np.ndarray:
    """Cumulated probabilities, of shifted ranks to a power, in random order."""
    weight = (np.arange(n) + offset) ** -power
    rng.shuffle(weight)
    total = np.cumsum(weight)
    return total / total[-1]


def _draw(rng: np.random.Generator, cumulated: np.ndarray, n: int) -> np.ndarray:
    return np.searchsorted(cumulated, rng.random(n), side="right").astype(np.int32)


def _ids(rng: np.random.Generator, n: int) -> np.ndarray:
    """Different random positive 31-bit integers, in random order."""
    ids = np.unique(rng.integers(1, 2**31, n + n // 50 + 10))
    return rng.permutation(ids)[:n]


W4 = RatingWorkload("w4", 138_000, 27_000, 20_000_000)
