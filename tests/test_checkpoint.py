"""Checkpoints of strangers are read, and nothing that they carry is run."""

import argparse
import builtins
import collections
import contextlib
import copy
import io
import itertools
import logging
import os
import pickle
import random
import runpy
import subprocess
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm import torch_file
from ldm.checkpoint import (
    LoadReport,
    fix_old_keys,
    load_with_report,
    read_checkpoint,
    read_embeddings,
    read_state_dict,
    safetensors_metadata,
    save_safetensors,
    save_torch,
    write_atomic,
)
from ldm.safe_pickle import Stub
from tests.golden import FOLDER, golden

# --------------------------------------------------------------------------- attacks


class Call:
    """Pickles as ``function(*arguments)``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments

    def __call__(self):
        """Only there so that a call may be the function of another call."""


class EvilCallback:
    """A training callback whose state, when restored, makes a file."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        Path(state["path"]).touch()


def _dumped(content: object) -> bytes:
    """The opcodes that build `content`, without the frame of a pickle."""
    return pickle.dumps(content, protocol=4)[11:-1]


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def _torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


_NUMBERS = itertools.count()


def _attack(name: str, canary: Path) -> bytes:
    """Opcodes that leave one object on the stack and, for an ordinary unpickler, make `canary`.

    The folder of `canary` is on Python's path.
    """
    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    script = canary.with_name(f"imported_{next(_NUMBERS)}.py")
    script.write_text(f"{python}\nnothing = None")
    getattr_ = Call(getattr, Call(__import__, "os"), "system")
    attacks = {
        "os.system": lambda: b"cos\nsystem\n(" + _text(touch) + b"tR",
        "posix.system": lambda: _dumped(Call(os.system, touch)),
        "subprocess": lambda: _dumped(Call(subprocess.call, ["touch", str(canary)])),
        "eval": lambda: _dumped(Call(builtins.eval, python)),
        "exec": lambda: _dumped(Call(builtins.exec, python)),
        "getattr chain": lambda: _dumped(Call(getattr_, touch)),
        "nested global": lambda: (
            _short("torch") + _short("serialization.os.system") + b"\x93(" + _text(touch) + b"tR"
        ),
        "global in an allowed class": lambda: (
            _short("collections")
            + _short("OrderedDict.fromkeys.__self__.__init__.__class__")
            + b"\x93"
            + _dumped(Call(os.system, touch))
            + b"\x86"
        ),
        "import": lambda: b"c%s\nnothing\n" % script.stem.encode(),
        "runpy": lambda: _dumped(Call(runpy.run_path, str(script))),
        "dict key": lambda: _dumped({Call(os.system, touch): 1}),
        "callback state": lambda: _dumped({"callbacks": EvilCallback(str(canary))}),
        "callback class": lambda: _dumped({EvilCallback: EvilCallback(str(canary))}),
        "rebuild by a callable": lambda: _dumped(
            Call(torch._tensor._rebuild_from_type_v2, os.system, int, (touch,), None)
        ),
        "call of a call": lambda: _dumped(
            Call(Call(__import__("functools").partial, os.system, touch))
        ),
        "state of a dictionary": lambda: (
            _dumped(collections.OrderedDict())
            + b"}" + _text("__setstate__") + b"cos\nsystem\nsb" + _text(touch) + b"b"
        ),
        "old instance opcode": lambda: b"(" + _text(touch) + b"ios\nsystem\n",
        "object opcode": lambda: b"(cos\nsystem\n" + _text(touch) + b"o",
        "torch in torch": lambda: _dumped(
            Call(torch.storage._load_from_bytes, _torch_bytes(Call(os.system, touch)))
        ),
    }  # fmt: skip
    return attacks[name]()


ATTACKS = [
    "os.system", "posix.system", "subprocess", "eval", "exec", "getattr chain", "nested global",
    "runpy", "dict key", "callback state", "callback class", "rebuild by a callable",
    "call of a call", "state of a dictionary", "old instance opcode", "object opcode",
    "torch in torch", "global in an allowed class", "import",
]  # fmt: skip


def _pickle_of(body: bytes) -> bytes:
    """A mapping with a good entry, a bad one and another good one."""
    good = b"}" + _text("epoch") + b"K\x07s"
    return b"\x80\x04" + good + _text("bad") + body + b"s" + _text("last") + b"K\x08s."


def _write(path: Path, body: bytes, layout: str) -> Path:
    content = _pickle_of(body)
    if layout == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        frame = [torch_file.LEGACY_MAGIC, 1001, {"little_endian": True}]
        start = b"".join(pickle.dumps(part, protocol=2) for part in frame)
        path.write_bytes(start + content + pickle.dumps([], protocol=2))
    return path


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A file that does not exist, and must not."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "canary"


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacks_are_real(name, canary):
    """An ordinary unpickler runs them; otherwise the next test would show nothing."""
    body = _attack(name, canary)
    with contextlib.suppress(TypeError, AttributeError):  # after the damage is done
        pickle.loads(_pickle_of(body))
    assert canary.exists()


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_nothing(name, layout, canary):
    path = _write(canary.with_name("model.ckpt"), _attack(name, canary), layout)
    content = {"epoch": 7, "last": 8, "bad": None}
    with contextlib.suppress(ValueError):  # a refusal is as good as an inert object
        content = read_checkpoint(path)
    assert (content["epoch"], content["last"]) == (7, 8)
    assert repr(content["bad"])
    assert not canary.exists()


@pytest.mark.parametrize("name", ["posix.system", "callback state", "dict key", "call of a call"])
def test_good_entries_survive_beside_a_bad_one(name, tmp_path, caplog):
    path = _write(tmp_path / "model.ckpt", _attack(name, tmp_path / "canary"), "zip")
    with caplog.at_level(logging.INFO, "ldm"):
        content = read_checkpoint(path)
    assert content["last"] == 8
    named = {"callback state": "EvilCallback"}.get(name, "system")
    assert named in caplog.text


def test_a_stub_swallows_everything(tmp_path):
    stub = type("Stub", (Stub,), {"path": "a.b"})(1, x=2)
    stub.append(1), stub.extend([1]), stub.add(1), stub.__setstate__({"append": print})
    stub["a"] = 1
    assert stub(1, 2)(3) is stub
    assert repr(stub) == "<not loaded: a.b>"
    assert vars(stub) == {}


@pytest.mark.filterwarnings("ignore:backward hook")
def test_no_factory_or_hook_of_the_file_is_ever_called(tmp_path):
    """What would run later, on use, is inert too."""
    hooked = torch.zeros(2, requires_grad=True)
    hooked._backward_hooks = collections.OrderedDict({0: os.system})
    factory = collections.defaultdict(os.abort)
    torch.save({"t": hooked, "d": factory}, tmp_path / "a.pt")
    content = read_checkpoint(tmp_path / "a.pt")
    assert content["t"]._backward_hooks is None
    assert isinstance(content["d"]["missing"], Stub)


def test_a_file_cannot_prepare_the_reading_of_the_next(tmp_path):
    """State set on a shared class or function would last; each reading has its own."""
    for target in ("ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n"):
        body = target.encode() + b"N}" + _text("__call__") + b"cos\nsystem\ns\x86b"
        path = _write(tmp_path / "a.ckpt", body, "zip")
        with pytest.raises(ValueError, match="cannot be read"):
            read_checkpoint(path)
    torch.save({"a": collections.OrderedDict(b=torch.ones(2))}, tmp_path / "b.pt")
    assert torch.equal(read_checkpoint(tmp_path / "b.pt")["a"]["b"], torch.ones(2))


def _quantized() -> torch.Tensor:
    with warnings.catch_warnings():  # torch means to take them away
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.arange(6.0), 0.1, 3, torch.quint8)


#: What is neither plain numbers nor text, and how it is told.
ODD = {
    "objects": (lambda: np.array([{"a": 1}, None], dtype=object), "numpy.dtype('O8')"),
    "dates": (lambda: np.array(["2024-01-01"], dtype="datetime64[D]"), "numpy.dtype('M8')"),
    "records": (lambda: np.zeros(2, dtype=[("a", "f4"), ("b", "O")]), "numpy.dtype('V12')"),
    "a date": (lambda: np.datetime64("2024-01-01"), "numpy.dtype('M8')"),
    "a record": (lambda: np.zeros(1, dtype=[("a", "f4")])[0], "numpy.dtype('V4')"),
    "quantized": (_quantized, "torch._utils._rebuild_qtensor"),
    "a quantized parameter": (
        lambda: nn.Parameter(_quantized(), requires_grad=False), "torch._utils._rebuild_qtensor"),
    "with attributes": (lambda: _named(_quantized()), "torch._utils._rebuild_qtensor"),
}  # fmt: skip


def _named(tensor: torch.Tensor) -> torch.Tensor:
    tensor.label = "scale"
    return tensor


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_arrays_of_other_types_are_stubs(name, new_format, tmp_path, caplog):
    make, told = ODD[name]
    odd, weight = make(), torch.arange(5.0)
    saved = {"state_dict": {"w": weight}, "odd": odd, "again": [odd], "array": np.arange(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(saved, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new_format)
    with caplog.at_level(logging.INFO, "ldm"):
        read = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(read_state_dict(tmp_path / "a.ckpt")["w"], weight)
    assert read["array"].tolist() == [0, 1, 2]
    stub = read["odd"]
    assert isinstance(stub, Stub)
    assert stub is read["again"][0]
    assert told in repr(stub)
    assert told in caplog.text
    assert repr(copy.deepcopy(stub)) == repr(stub), "as Lightning copies what callbacks kept"
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(stub)


def test_a_weight_that_is_a_stub_is_missed(tmp_path):
    odd = np.array([None], dtype=object)
    torch.save({"layer.weight": odd, "layer.bias": torch.ones(2)}, tmp_path / "a.ckpt")
    assert list(read_state_dict(tmp_path / "a.ckpt")) == ["layer.bias"]
    torch.save({"layer.weight": odd}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"no weights: its entries are layer\.weight"):
        read_state_dict(tmp_path / "a.ckpt")


def test_tensors_beyond_their_data_are_refused(tmp_path):
    content = torch.ones(4)
    torch.save({"w": content}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in records if n.endswith("data.pkl"))
    assert records[name].count(b"K\x04\x85") == 1  # the size, (4,)
    records[name] = records[name].replace(b"K\x04\x85", b"K\x05\x85")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    with pytest.raises(ValueError, match="beyond the stored data"):
        read_checkpoint(tmp_path / "b.pt")


def test_a_program_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/constants.pkl", pickle.dumps(()))
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(tmp_path / "a.pt")


# ------------------------------------------------------------------- reading what is there


def _everything() -> dict:
    w = torch.randn(5, 6)
    return {
        "state_dict": collections.OrderedDict(
            w=w, view=w.t()[1:], half=w.half(), bf16=w.bfloat16(), ints=torch.arange(3),
            empty=torch.empty(0), scalar=torch.tensor(3), flags=torch.ones(3, dtype=torch.bool),
            complex=torch.randn(3, dtype=torch.complex64), parameter=nn.Parameter(w),
        ),
        "epoch": 3, "score": np.float64(2.5), "array": np.arange(6.0).reshape(2, 3),
        "names": np.array(["ab", "c"]), "args": argparse.Namespace(size=1), "bytes": b"abc",
        "lists": collections.defaultdict(list, {"a": [1, {2, 3}]}), "dtype": torch.float16,
        "shape": w.shape, "device": torch.device("cuda"), "slice": slice(1, 2),
        "words": nn.ParameterDict({"*": nn.Parameter(w), "to2": nn.Parameter(w[:2].clone())}),
    }  # fmt: skip


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("new_format", [True, False])
def test_everything_a_checkpoint_needs_comes_back(new_format, mapped, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAP_FROM_BYTES", 1 if mapped else 1 << 40)
    saved = _everything()
    path = tmp_path / "a.ckpt"
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(path)
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(read["state_dict"][name], tensor), name
        assert read["state_dict"][name].dtype == tensor.dtype, name
    w, view = read["state_dict"]["w"], read["state_dict"]["view"]
    assert view.untyped_storage().data_ptr() == w.untyped_storage().data_ptr()  # still shared
    assert isinstance(read["score"], np.float64)
    assert read["score"] == 2.5
    np.testing.assert_array_equal(read["array"], saved["array"])
    np.testing.assert_array_equal(read["names"], saved["names"])
    assert read["args"].size == 1
    for name in ("epoch", "bytes", "lists", "dtype", "shape", "device", "slice"):
        assert read[name] == saved[name], name
    assert list(read["words"]) == ["*", "to2"]
    assert torch.equal(read["words"]["*"], saved["words"]["*"])


def test_what_was_read_can_be_saved_and_is_then_ordinary(tmp_path):
    torch.save(_everything(), tmp_path / "a.pt")
    save_torch(read_checkpoint(tmp_path / "a.pt"), tmp_path / "b.pt")
    again = torch.load(tmp_path / "b.pt", weights_only=False)
    kinds = {name: type(again[name]) for name in ("state_dict", "array", "args", "words")}
    assert kinds == {
        "state_dict": collections.OrderedDict, "array": np.ndarray,
        "args": argparse.Namespace, "words": dict,
    }  # fmt: skip


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_go_where_they_are_asked_to(new_format, tmp_path):
    saved = {"a": torch.ones(3, 2).t()}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    read = read_checkpoint(tmp_path / "a.pt", map_location="meta")["a"]
    assert (read.device.type, tuple(read.shape), read.stride()) == ("meta", (2, 3), (1, 2))


def test_tensors_written_on_a_gpu_are_read_without_one(tmp_path):
    """The file says ``cuda:0``; here that is only a word."""
    torch.save({"a": torch.arange(5.0)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in records if n.endswith("data.pkl"))
    assert _text("cpu") in records[name]
    records[name] = records[name].replace(_text("cpu"), _text("cuda:0"))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for record, data in records.items():
            archive.writestr(record, data)
    assert torch.equal(read_checkpoint(tmp_path / "b.pt")["a"], torch.arange(5.0))


def test_reading_never_writes_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAP_FROM_BYTES", 1)
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    read_checkpoint(tmp_path / "a.pt")["a"].add_(1)
    assert (tmp_path / "a.pt").read_bytes() == before


# ------------------------------------------------------------------- what is not a checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Access denied", "web page.*download failed"),
        (b"\n  <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b'{"error": "Entry not found", "code": 404}', "text file.*Entry not found"),
        ("größe: 3\n".encode() * 90, "text file"),
        (pickle.dumps({"a": 1}), "ordinary pickle"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "gzip"),
        (bytes(257) + b"ustar" + bytes(500), "tar archive"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)), "neither"),
    ],
)
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_other_files_are_named_for_what_they_are(content, message, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_a_clear_error_wherever_it_ends(layout, tmp_path):
    tensors = {"a": torch.randn(40), "b": torch.randn(3, 3)}
    whole = tmp_path / "whole"
    if layout == "safetensors":
        save_safetensors(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=layout == "zip")
    data, path = whole.read_bytes(), tmp_path / "cut.ckpt"
    for length in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.ckpt"):
            read_checkpoint(path)


@pytest.mark.parametrize("layout", ["zip", "legacy", "safetensors"])
def test_damaged_files_give_an_error_or_data_never_a_crash(layout, tmp_path):
    whole = tmp_path / "whole"
    if layout == "safetensors":
        save_safetensors({"a": torch.randn(6)}, whole)
    else:
        torch.save(_everything(), whole, _use_new_zipfile_serialization=layout == "zip")
    data, path, draw = whole.read_bytes(), tmp_path / "damaged.ckpt", random.Random(0)
    damaged = 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(3):
            changed[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read_checkpoint(path)
        except ValueError:
            damaged += 1
    assert damaged > 10


def test_a_missing_file_is_told_with_what_is_there(tmp_path):
    for name in ("model.ckpt", "notes.txt", "embeddings_gs-99.pt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"modle\.ckpt.*that folder has model\.ckpt, emb"):
        read_checkpoint(tmp_path / "modle.ckpt")
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        read_checkpoint(tmp_path / "nowhere" / "at all" / "model.ckpt")
    with pytest.raises(IsADirectoryError, match=r"is a folder.*embeddings_gs-99\.pt, model\.ckpt"):
        read_checkpoint(tmp_path)


def test_content_that_is_no_mapping(tmp_path):
    torch.save(torch.ones(2, 3), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"one tensor of shape \(2, 3\)"):
        read_checkpoint(tmp_path / "a.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "b.pt")
    with pytest.raises(
        ValueError, match=r"not loaded: torch\.nn\.modules\.linear\.Linear.*state_d"
    ):
        read_checkpoint(tmp_path / "b.pt")


# --------------------------------------------------------------------------- state dicts


@pytest.mark.parametrize("wrapper", [None, "state_dict", "state_dict_ema", "model_ema"])
def test_the_weights_are_found_in_every_wrapping(wrapper, tmp_path):
    state = {"a.weight": torch.ones(2)}
    content = {wrapper: state, "epoch": 1, "lr": torch.zeros(1)} if wrapper else state
    save_torch(content, tmp_path / "a.ckpt")
    assert list(read_state_dict(tmp_path / "a.ckpt")) == ["a.weight"]
    save_safetensors(state, tmp_path / "a.safetensors")
    assert list(read_state_dict(tmp_path / "a.safetensors")) == ["a.weight"]


def test_a_real_lightning_checkpoint_is_read(tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Toy(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, _index):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    saver = lightning.callbacks.ModelCheckpoint(tmp_path, filename="toy", save_last=True)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", callbacks=[saver], logger=False, enable_progress_bar=False
    )
    toy = Toy()
    trainer.fit(toy, torch.utils.data.DataLoader(torch.randn(4, 2)))
    state = read_state_dict(tmp_path / "last.ckpt")
    assert torch.equal(state["layer.weight"], toy.layer.weight)
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


def test_files_without_weights_say_what_they_are(tmp_path):
    save_torch({}, tmp_path / "emptied.ckpt")
    with pytest.raises(ValueError, match="embeddings_gs"):
        read_state_dict(tmp_path / "emptied.ckpt")
    with pytest.raises(ValueError, match="learned words"):
        read_state_dict(FOLDER / "embeddings_gs-original.pt")
    save_torch({"epoch": 1, "loss": 0.5}, tmp_path / "log.pt")
    with pytest.raises(ValueError, match="no weights: its entries are epoch, loss"):
        read_state_dict(tmp_path / "log.pt")


def test_old_names_are_brought_up_to_date():
    one = torch.ones(1)
    assert set(fix_old_keys({"module.a": one, "module.b": one})) == {"a", "b"}
    assert set(fix_old_keys({"module.a": one, "b": one})) == {"module.a", "b"}
    compiled = {"model._orig_mod.diffusion_model.x": one, "betas": one}
    assert set(fix_old_keys(compiled)) == {"model.diffusion_model.x", "betas"}
    extras = dict.fromkeys(["ddim_sigmas", "ddim_alphas", "lvlb_weights", "model_ema.decay"], one)
    assert set(fix_old_keys(extras)) == {"model_ema.decay"}
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    fixed = fix_old_keys({ids: torch.arange(77.0)[None]})[ids]
    assert fixed.dtype == torch.int64
    assert torch.equal(fixed, torch.arange(77)[None])
    before = {"ddim_sigmas": one}
    fix_old_keys(before)
    assert set(before) == {"ddim_sigmas"}


class _Toy(nn.Module):
    """The outline of a latent diffusion model."""

    def __init__(self, context: int = 4):
        super().__init__()
        self.model = nn.ModuleDict({"diffusion_model": nn.ModuleDict({"attn2": nn.Module()})})
        self.model.diffusion_model.attn2.to_k = nn.Linear(context, 3, bias=False)
        self.first_stage_model = nn.Linear(2, 2)
        self.register_buffer("betas", torch.zeros(3))


def test_loading_reports_what_did_not_match(caplog):
    state = _Toy().state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["betas"], state["first_stage_model.bias"]
    target = _Toy()
    with caplog.at_level(logging.INFO, "ldm"):
        report = load_with_report(target, state, source="some.ckpt")
    assert report == LoadReport(("betas", "first_stage_model.bias"), ("extra.weight",), (), 2)
    assert "some.ckpt: loaded 2 tensors; missing 2" in caplog.text
    assert "left as built: first_stage_model.bias" in caplog.text
    assert torch.equal(target.first_stage_model.weight, state["first_stage_model.weight"])


def test_a_complete_checkpoint_warns_of_nothing(caplog):
    with caplog.at_level(logging.WARNING, "ldm"):
        report = load_with_report(_Toy(), _Toy().state_dict() | {"ddim_sigmas": torch.ones(1)})
    assert (report.missing, report.unexpected, report.loaded) == ((), (), 4)
    assert not caplog.records


def test_ignored_parts_are_neither_loaded_nor_missed():
    target = _Toy()
    before = target.first_stage_model.weight.clone()
    report = load_with_report(target, _Toy().state_dict(), ignore=["first_stage_model"])
    assert report.missing == ()
    assert torch.equal(target.first_stage_model.weight, before)


def test_a_missing_core_part_is_an_error():
    state = {k: v for k, v in _Toy().state_dict().items() if not k.startswith("model.")}
    with pytest.raises(
        ValueError, match=r"a\.ckpt has no weights for 'model\.diffusion_model\.\*'"
    ):
        load_with_report(_Toy(), state, source="a.ckpt")


def test_a_checkpoint_of_something_else_is_an_error():
    with pytest.raises(ValueError, match=r"none of the 2 weights.*under 'first_stage_model\.\*'"):
        load_with_report(nn.Linear(2, 2), _Toy().state_dict())


def test_another_architecture_is_told_by_its_settings():
    target = _Toy(context=4)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"another architecture: context_dim 4 here vs 6 in.*\(3, 6"
    ):
        load_with_report(target, _Toy(context=6).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_averaged_weights_alone_are_used():
    source, target = _Toy(), _Toy()
    state = source.state_dict()
    name = "model.diffusion_model.attn2.to_k.weight"
    state["model_ema.diffusion_modelattn2to_kweight"] = state.pop(name)
    load_with_report(target, state)
    assert torch.equal(target.state_dict()[name], source.state_dict()[name])


# --------------------------------------------------------------------------- learned words


@pytest.mark.parametrize("name", ["original", "torch111-layout"])
def test_files_of_the_original_code_are_read(name):
    read = read_embeddings(FOLDER / f"embeddings_gs-{name}.pt")
    expected = golden("textual_inversion")
    assert read.source_format == "textual_inversion"
    assert set(read.vectors) == set(read.tokens) == {"*", "@"}
    for word, vectors in read.vectors.items():
        assert torch.equal(vectors, expected[f"nv3.param.{word}"])
        assert not vectors.requires_grad


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_words_of_diffusers(suffix, tmp_path):
    content = {
        "<cat>": torch.randn(8), "<cat>_1": torch.randn(8), "<cat>_2": torch.randn(8),
        "snake_case": torch.randn(8), "<dog>": torch.randn(2, 8).half(), "other_7": torch.randn(8),
    }  # fmt: skip
    path = tmp_path / f"learned_embeds{suffix}"
    (save_safetensors if suffix == ".safetensors" else save_torch)(content, path)
    read = read_embeddings(path)
    assert read.source_format == "diffusers"
    shapes = {word: tuple(vectors.shape) for word, vectors in read.vectors.items()}
    assert shapes == {"<cat>": (3, 8), "snake_case": (1, 8), "<dog>": (2, 8), "other_7": (1, 8)}
    assert torch.equal(read.vectors["<cat>"][1], content["<cat>_1"])
    assert all(vectors.dtype == torch.float32 for vectors in read.vectors.values())


def test_words_of_web_interfaces(tmp_path):
    content = {
        "string_to_token": {"*": 265}, "string_to_param": {"*": nn.Parameter(torch.ones(2, 8))},
        "name": "my style", "step": 5000, "sd_checkpoint": None,
    }  # fmt: skip
    save_torch(content, tmp_path / "a.pt")
    read = read_embeddings(tmp_path / "a.pt")
    assert (list(read.vectors), read.tokens, read.source_format) == (["my style"], {}, "a1111")
    save_safetensors({"emb_params": torch.ones(4, 8)}, tmp_path / "toy.safetensors")
    read = read_embeddings(tmp_path / "toy.safetensors")
    assert (list(read.vectors), read.source_format) == (["toy"], "kohya")
    both = {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)}
    save_safetensors(both, tmp_path / "xl.safetensors")
    read = read_embeddings(tmp_path / "xl.safetensors")
    assert {w: v.shape[1] for w, v in read.vectors.items()} == {"xl_clip_l": 8, "xl_clip_g": 12}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "loss": 2}, "no known layout.*found the keys epoch, loss"),
        ({"layer.weight": torch.ones(2, 2)}, r"found the keys layer\.weight"),
        ({"string_to_param": {}}, "no known layout"),
        ({"emb_params": torch.ones(2, 3, 4)}, r"'a' should be \(vectors, width\).*\(2, 3, 4\)"),
        ({"word": torch.arange(4)}, "'word' should be"),
    ],
)
def test_other_layouts_are_named_by_their_keys(content, message, tmp_path):
    save_torch(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "a.pt")


# --------------------------------------------------------------------------- writing


def test_writing_replaces_the_whole_file_or_nothing(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with write_atomic(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
        assert temporary.parent == path.parent

    def interrupted() -> None:
        with write_atomic(path) as temporary:
            temporary.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_writing_keeps_links_and_refuses_folders(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to("b.txt")
    with write_atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "b.txt").read_text() == "new"
    with pytest.raises(IsADirectoryError, match="is a folder"), write_atomic(tmp_path):
        pass


def test_a_mapped_file_can_be_overwritten_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAP_FROM_BYTES", 1)
    save_torch({"a": torch.arange(50.0)}, tmp_path / "a.pt")
    for _ in range(3):
        save_torch(read_checkpoint(tmp_path / "a.pt"), tmp_path / "a.pt")
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.arange(50.0))


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a.pt", "another name.pt"):
        save_torch({"a": torch.ones(3)}, tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "another name.pt").read_bytes()


def test_safetensors_with_shared_memory_and_text(tmp_path):
    one = torch.arange(6.0).reshape(2, 3)
    path = tmp_path / "a.safetensors"
    save_safetensors({"a": one, "b": one.t()}, path, {"word": "<cat>"})
    assert torch.equal(read_checkpoint(path)["b"], one.t())
    assert safetensors_metadata(path) == {"word": "<cat>"}
    with pytest.raises(ValueError, match=r"not text: \['step'\]"):
        save_safetensors({"a": one}, path, {"step": 3})
