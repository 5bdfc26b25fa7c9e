"""How a script ends: its exit code, and one message where a person can do something."""

import pytest
import torch

from ldm.errors import UserError, exit_code


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("give a prompt"), 1, "error: give a prompt"),
        (FileNotFoundError("no such file: a.png"), 1, "error: no such file: a.png"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"),
            1,
            "Tried 2 GiB.): fewer",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
        (MemoryError(), 1, "not enough memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_person_can_mend_is_one_message(caplog, error, code, said):
    assert exit_code(raising(error)) == code
    assert said in caplog.records[-1].getMessage()
    assert "\n" not in caplog.records[-1].getMessage()


def test_work_that_is_done_is_success():
    done = []
    assert exit_code(lambda: done.append(1)) == 0
    assert done == [1]


def test_a_fault_of_the_code_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"):
        exit_code(raising(RuntimeError("shapes do not fit")))
