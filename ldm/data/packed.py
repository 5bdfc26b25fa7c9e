"""The examples of several independent runs in one batch."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from ldm.data.steps import StepKey


class PackedDataset(Dataset[dict[str, Any]]):
    """Keyed datasets side by side: the key (step, slot, run) is asked of member `run`.

    A member is asked with run 0, as it is when it is learned from alone, and so gives exactly the
    same examples. `active` holds the numbers of the runs that still learn.
    """

    keyed = True

    def __init__(self, members: Sequence[Any]) -> None:
        self.members = list(members)
        self.active = list(range(len(self.members)))

    def __len__(self) -> int:
        """The length of the longest epoch."""
        return max(map(len, self.members))

    def __getitem__(self, key: StepKey) -> dict[str, Any]:
        """The example of one slot of one step of one run."""
        return {**self.members[key.run][key._replace(run=0)], "run": key.run}
