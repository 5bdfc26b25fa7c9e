"""What benchmarks measure with, checked on things whose answer is known; each one at toy size."""

import json
import multiprocessing
import re
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import memory, report, sampling, scenes, step, workload
from benchmarks.harness import Case, Clock, Timing, flops, saved_bytes, side_by_side, summarise
from benchmarks.workload import Workload, taken_apart
from ldm.evaluation.pages import filled
from tests.training.toy import Toy, write_toy

CPU = Clock("cpu")


class Operations(TorchDispatchMode):
    """A clock on which every operation of torch takes a second, and nothing else takes time."""

    of = Clock.of

    def __init__(self) -> None:
        super().__init__()
        self.done = 0.0

    def __call__(self) -> float:
        return self.done

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        self.done += 1
        return call(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def work(toy) -> Workload:
    return Workload.of([str(toy.method), str(toy.backbone)], 2)


class TestSideBySide:
    def test_ratio_is_to_the_first_case_of_the_same_round(self):
        slow = summarise("slow", [2.0, 4.0, 90.0], [1.0, 2.0, 30.0])
        assert slow == Timing("slow", 4.0, 3.0, 47.0, 2.0)

    def test_every_case_runs_in_every_round_within_its_context(self):
        ran, inside = [], []

        class Within:
            def __enter__(self):
                inside.append(True)

            def __exit__(self, *_):
                inside.pop()

        cases = {
            "a": Case(lambda: ran.append(("a", bool(inside)))),
            "b": Case(lambda: ran.append(("b", bool(inside))), Within),
        }
        assert [t.name for t in side_by_side(cases, CPU, rounds=3, warmup=1)] == ["a", "b"]
        assert sorted(ran) == [("a", False)] * 4 + [("b", True)] * 4
        assert ran[0] != ran[2], "turns change"

    def test_more_work_takes_longer(self):
        a = torch.randn(2, 2)
        cases = {
            "little": Case(lambda: [a @ a for _ in range(2)]),
            "much": Case(lambda: [a @ a for _ in range(14)], lambda: nullcontext(a @ a)),
        }
        with Operations() as clock:
            found = side_by_side(cases, clock, rounds=3)
        assert found == [Timing("little", 2, 2, 2, 1), Timing("much", 14, 14, 14, 7)]


def test_operations_of_a_matrix_product():
    assert flops(lambda: torch.randn(3, 5) @ torch.randn(5, 7)) == 2 * 3 * 5 * 7


def test_bytes_kept_for_the_backward_pass():
    weight = torch.randn(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    # exp keeps its result, and so does the next one; the product keeps only the weight.
    assert saved_bytes(lambda: (x @ weight).exp().exp(), [weight]) == 2 * 4 * 8 * 4
    # A view is no memory of its own.
    assert saved_bytes(lambda: x.view(32) * x.view(32)) == 4 * 8 * 4


class TestWorkload:
    def test_only_words_get_gradients(self, work):
        work.step()
        got = {name for name, value in work.model.named_parameters() if value.grad is not None}
        words = [word.name for word in work.dataset.words]
        assert got == {f"embedding_manager.string_to_param_dict.{word}" for word in words}
        assert len(words) == 2

    def test_parts_add_up_to_a_step(self, work):
        work.step()  # what is kept for all steps is made in the first
        work.number = 4
        with Operations() as whole, workload.encoding_every_step(work):
            work.loss().backward()
        work.number = 4
        with Operations() as clock:
            parts = taken_apart(work, clock)
        assert set(parts) == {"encode", "text forward", "U-Net forward", "U-Net backward",
                              "text backward", "data, noise, loss"}  # fmt: skip
        assert sum(parts.values()) == whole()
        assert min(parts.values()) > 0

    def test_a_gradient_does_not_depend_on_the_steps_before_it(self, work):
        expected = work.gradient(3)
        for number in range(12):
            work.gradient(number)
            assert torch.equal(work.gradient(3), expected)

    @pytest.mark.parametrize("name", [n for n in step.WAYS if "bfloat16" not in n])
    def test_a_way_changes_the_time_only(self, work, name):
        expected = work.gradient(3)
        with step.within(work, *step.WAYS[name]):
            found = work.gradient(3)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        assert expected.abs().max() > 0

    def test_checkpointing_keeps_less(self, work):
        kept = []
        for ways in ((), (workload.checkpointing,)):
            with step.within(work, *ways):
                kept.append(saved_bytes(work.loss, list(work.model.parameters())))
        assert kept[1] < 0.6 * kept[0]

    def test_halves_one_after_the_other_are_the_same_picture(self, work):
        drawing = sampling.Drawing(work, 2)
        alone = drawing(sampling.OneHalfAtATime(work.model))
        torch.testing.assert_close(alone, drawing(), rtol=1e-3, atol=1e-4)


class Made(TorchDispatchMode):
    """Which gradients the backward passes of layers with weights make: (input, weight, bias)."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        result = call(*args, **(kwargs or {}))
        if re.search("(convolution|group_norm|layer_norm)_backward", str(call)):
            self.gradients.append([each is not None for each in result])
        return result


def test_frozen_network_computes_no_gradient_of_weights(work):
    with step.within(work):
        loss = work.loss()
    with Made() as made:
        loss.backward()
    assert len(made.gradients) > 20
    assert {tuple(each) for each in made.gradients} == {(True, False, False)}


def test_nothing_is_kept_of_what_comes_before_the_words(work):
    """Until the first cross-attention no gradient is wanted, so that there is no graph."""
    unet, seen = work.model.model.diffusion_model, []
    first, second = unet.input_blocks[:2]
    hooks = [block.register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
             for block in (first, second[0], second)]  # fmt: skip
    with step.within(work):
        work.loss()
    for hook in hooks:
        hook.remove()
    assert seen == [False, False, True]


@pytest.mark.parametrize("benchmark", [step, sampling])
def test_benchmark_from_the_command_line(benchmark, toy, tmp_path, monkeypatch, capsys):
    name = benchmark.__name__.rpartition(".")[2]
    file = tmp_path / f"{name}.json"
    arguments = ["--config", str(toy.method), str(toy.backbone), "--batch", "1", "--rounds", "1"]
    arguments += ["--tables", "parts", "terms"] if benchmark is step else ["--steps", "1"]
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--json", str(file)])
    assert benchmark.main() == 0
    result = json.loads(file.read_text())
    assert result["benchmark"] == name
    assert result["tables"]["matrix rate"][0]["gflop_per_s"] > 0
    assert "name" in capsys.readouterr().out
    text = f"before\n<!-- begin {name} -->\nold\n<!-- end {name} -->\nafter\n"
    document = filled(text, {name: report.section(result)})
    assert document.startswith("before\n")
    assert document.endswith(f"<!-- end {name} -->\nafter\n")
    assert "old" not in document
    assert "| float32 |" in document


def test_scenes_a_second_are_those_of_the_times(tmp_path, monkeypatch):
    file = tmp_path / "scenes.json"
    monkeypatch.setattr(scenes, "SIZES", (16, 32))
    monkeypatch.setattr(scenes, "WORKERS", (0,))
    monkeypatch.setattr(scenes, "BATCHES", 3)
    arguments = ["scenes", "--batch", "2", "--rounds", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert scenes.main() == 0
    tables = json.loads(file.read_text())["tables"]
    for title, count in (("one process", 2), ("loaders", 6)):
        for timing, rate in zip(tables[title], tables[f"{title}, rates"], strict=True):
            assert rate["scenes_a_second"] == pytest.approx(count / timing["seconds"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_works_for_its_own_round_and_nothing_of_it_is_ready(workers):
    loading, drawn = scenes.Loading(workers, 2), []
    before = multiprocessing.active_children()
    for _ in range(2):
        with loading.at_work():
            assert len(multiprocessing.active_children()) == len(before) + workers
            drawn.append(next(loading.loader))
        assert multiprocessing.active_children() == before
    # Two batches of two are ordered of a worker ahead.
    assert [batch["image_id"].tolist() for batch in drawn] == [[4 * workers, 4 * workers + 1]] * 2
    assert not torch.equal(*[batch["image"] for batch in drawn]), "no round repeats another"


def test_the_clock_of_this_process_does_not_time_workers(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scenes", "--clock", "cpu"])
    with pytest.raises(SystemExit):
        scenes.main()
    assert "does not count what workers draw" in capsys.readouterr().err


def test_a_card_is_large_enough_or_not():
    small = {"weights": 2 * memory.GIB, "kept": memory.GIB, "peak": 5 * memory.GIB}
    assert memory.row("x", 1, small)["fits_8_gib"] == "yes"
    assert memory.row("x", 4, {**small, "kept": 6 * memory.GIB})["fits_8_gib"] == "no"
