"""Find which of several processes this is, and which shards it converts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpack.errors import UsageError

#: Variables with the number of this process and the number of all, by launcher. Slurm sets the
#: second pair for the tasks of srun only: a batch script alone is one process.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)


@dataclass(frozen=True)
class Ranks:
    """This process among those that convert together.

    Attributes:
        number: its rank, from 0.
        of: how many processes there are.
    """

    number: int = 0
    of: int = 1

    @classmethod
    def here(cls, environment: Mapping[str, str] | None = None) -> Ranks:
        """Read rank and size from the variables of the launcher; one process without a launcher.

        Raises:
            UsageError: the variables are not a rank and a size.
        """
        environment = os.environ if environment is None else environment
        for number, of in LAUNCHERS:
            if number in environment and of in environment:
                texts = environment[number], environment[of]
                if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
                    raise UsageError(
                        f"{number}={texts[0]!r} and {of}={texts[1]!r}, expected a rank from 0 and "
                        "a greater number of processes. Unset both to convert in one process."
                    )
                return cls(int(texts[0]), int(texts[1]))
        return cls()

    def own(self, sizes: Sequence[int]) -> list[int]:
        """Return the positions of the shards that this process converts, balanced by size.

        Example:
            >>> Ranks(0, 2).own([5, 1, 3, 3]), Ranks(1, 2).own([5, 1, 3, 3])
            ([0, 1], [2, 3])
        """
        loads = [0] * self.of
        mine = []
        for position in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += sizes[position]
            if rank == self.number:
                mine.append(position)
        return sorted(mine)
