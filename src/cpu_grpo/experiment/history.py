"""The figures of each update, held in a few bytes each: a run of days has hundreds of thousands of updates."""

import math
from array import array

Rows = list[dict[str, float]]
STEADY = 200  # sampled updates that are kept, at most


class History:
    """Rows of figures by name. What a row lacks is NaN, and is not there when rows are read."""

    def __init__(self, rows: Rows | None = None) -> None:
        self._columns: dict[str, array[float]] = {}
        self._whole: set[str] = set()  # columns of whole numbers
        self._length = 0
        for row in rows or []:
            self.append(row)

    def __len__(self) -> int:
        return self._length

    def append(self, row: dict[str, float]) -> None:
        """Adds a row."""
        self._length += 1
        for column in self._columns.values():
            column.append(math.nan)
        self.amend(row)

    def amend(self, figures: dict[str, float]) -> None:
        """Adds figures to the last row."""
        for name, value in figures.items():
            if name not in self._columns:
                self._columns[name] = array("d", [math.nan]) * self._length
                self._whole |= {name} if isinstance(value, int) else set()
            self._columns[name][-1] = value

    def rows(self) -> Rows:
        """All of them, in the order in which they came."""
        return [self.row(place) for place in range(self._length)]

    def row(self, place: int) -> dict[str, float]:
        """One; -1 is the last."""
        found = {name: column[place] for name, column in self._columns.items()}
        return {
            name: int(value) if name in self._whole else value for name, value in found.items() if not math.isnan(value)
        }

    def last(self, name: str, count: int) -> list[float]:
        """A column's last values, fewer where there are fewer."""
        return list(self._columns.get(name, [])[-count:])


def thinned(samples: list[dict[str, object]]) -> list[dict[str, object]]:
    """The samples of every second sampled update, once there are STEADY of them."""
    steps = list(dict.fromkeys(row["step"] for row in samples))
    if len(steps) < STEADY:
        return samples
    kept = set(steps[::2])
    return [row for row in samples if row["step"] in kept]
