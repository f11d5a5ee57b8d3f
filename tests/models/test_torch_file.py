"""PyTorch's own files: read without PyTorch, equal to what PyTorch reads, and never executed."""

import pickle
import zipfile

import numpy as np
import pytest

from jax_mtlser.models.pretrained.torch_file import TorchFileError, read_torch_file

torch = pytest.importorskip("torch")


def test_tensors_of_every_layout_and_type_equal_pytorchs(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "plain": base,
        "transposed": base.T,
        "slice": base[1:, ::2],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "int64": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base * 2),
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    read = read_torch_file(tmp_path / "pytorch_model.bin")
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        assert read[key].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[key].astype(np.float64), tensor.detach().double().numpy())


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(TorchFileError, match=r"asks for .*open; only plain tensors"):
        read_torch_file(tmp_path / "evil.bin")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_something_else_is_named_as_such(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(TorchFileError, match="damaged, or was written by PyTorch before"):
        read_torch_file(tmp_path / "x.bin")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "whole.bin").read_bytes()[:2000])
    with pytest.raises(TorchFileError):
        read_torch_file(tmp_path / "cut.bin")


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(4)}, tmp_path / "good.bin")
    with zipfile.ZipFile(tmp_path / "good.bin") as good, zipfile.ZipFile(tmp_path / "bad.bin", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data[:8] if "/data/" in name else data)
    with pytest.raises(TorchFileError, match="has 2 of its 4 numbers"):
        read_torch_file(tmp_path / "bad.bin")


def test_other_contents_are_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.bin")
    with pytest.raises(TorchFileError, match="holds a list"):
        read_torch_file(tmp_path / "list.bin")
    torch.save({"step": 3}, tmp_path / "number.bin")
    with pytest.raises(TorchFileError, match="'step' is no tensor"):
        read_torch_file(tmp_path / "number.bin")
    with zipfile.ZipFile(tmp_path / "zip.bin", "w") as archive:
        archive.writestr("hello.txt", pickle.dumps(1))
    with pytest.raises(TorchFileError, match=r"not one that torch\.save wrote"):
        read_torch_file(tmp_path / "zip.bin")


def _crafted(path, storage: bytes, views):
    """A file whose pickle nests ``_rebuild_tensor_v2`` calls around one storage."""
    parts = [b"\x80\x02", b"}", b"X\x01\x00\x00\x00w"]
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    numbers = len(storage) // 4
    stored = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuI%d\ntQ" % numbers
    body = stored[1:]
    for offset, size, stride in views:
        shape = b"(" + b"".join(b"I%d\n" % n for n in size) + b"t"
        steps = b"(" + b"".join(b"I%d\n" % n for n in stride) + b"t"
        body = call + b"(" + body + b"I%d\n" % offset + shape + steps + b"tR"
    parts += [body, b"s."]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(parts))
        archive.writestr("archive/data/0", storage)
    return path


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([(0, (100_000, 0), (1, 1)), (0, (100_000,), (1,))], "no storage"),
        ([(0, (5,), (1,))], "reaches beyond"),
        ([(2, (3,), (1,))], "reaches beyond"),
        ([(0, (1_000_000, 1_000_000), (0, 0))], "reaches beyond"),
        ([(-1, (2,), (1,))], "offset -1"),
        ([(0, (2, 2), (1,))], "strides"),
    ],
)
def test_a_crafted_tensor_reads_nothing_outside_its_storage(tmp_path, views, message):
    path = _crafted(tmp_path / "crafted.bin", np.arange(4, dtype=np.float32).tobytes(), views)
    with pytest.raises(TorchFileError, match=message):
        read_torch_file(path)


def test_the_crafted_file_is_read_where_its_tensor_is_honest(tmp_path):
    path = _crafted(tmp_path / "honest.bin", np.arange(4, dtype=np.float32).tobytes(), [(0, (2, 2), (2, 1))])
    np.testing.assert_array_equal(read_torch_file(path)["w"], [[0, 1], [2, 3]])
