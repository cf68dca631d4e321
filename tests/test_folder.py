"""Index, folder, links, stand-ins, and what `open_local` makes of a path."""

import json
import os
import re
import socket
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostile_cases import BAD_SHARD_NAMES, INDEX_CASES, PAGE, POINTER, Case
from whorl._readers.file_names import check_plain_name
from whorl._readers.folder import FolderSource, open_local
from whorl._readers.safetensors_file import SafetensorsFile
from whorl._readers.shards import INDEX_NAME, parse_index
from whorl._readers.subject import Subject
from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile, UsageError, WhorlError
from whorl.source import TensorSource
from whorl.testing import encode_safetensors, write_model_folder

CONFIG = {"model_type": "llama", "hidden_size": 4}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="links and FIFOs")


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((3, 4)).astype(np.float32) for name in ("embed", "norm", "a.weight", "b.weight")}


@pytest.fixture
def single(tmp_path, tensors):
    return write_model_folder(tmp_path / "single", tensors, CONFIG)


@pytest.fixture
def sharded(tmp_path, tensors):
    return write_model_folder(tmp_path / "sharded", tensors, CONFIG, n_shards=2)


def edit_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index)
    (folder / INDEX_NAME).write_text(json.dumps(index))


def refused(path: Path, error: type[WhorlError], pattern: str) -> str:
    with pytest.raises(error, match=pattern) as caught:
        open_local(path)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()
    return str(caught.value)


# Index


@pytest.mark.parametrize("case", INDEX_CASES, ids=str)
def test_table_of_index_cases(case: Case):
    if case.error is None:
        assert parse_index(case.data).weight_map
        return
    with pytest.raises(case.error, match=case.pattern) as caught:
        parse_index(case.data)
    assert type(caught.value) is case.error
    assert str(caught.value).startswith(f"Refused index '{INDEX_NAME}': ")


@given(st.text(max_size=20), st.text(max_size=20))
def test_accepted_shard_names_stay_inside_the_folder_on_every_system(start, end):
    name = f"{start}..{end}.safetensors" if len(end) % 2 else f"{start}{end}.safetensors"
    try:
        check_plain_name(name, Subject("index", "i"), ".safetensors")
    except UnsafeFile:
        return
    import ntpath
    import posixpath

    for flavour, base in ((ntpath, "C:\\m"), (posixpath, "/m")):
        whole = flavour.normpath(flavour.join(base, name))
        assert flavour.dirname(whole) == base
        assert flavour.basename(whole) == name


@given(st.binary(max_size=200))
def test_noise_as_index_raises_only_our_errors(data):
    with pytest.raises(InputRefused):
        parse_index(data)


@pytest.mark.parametrize("name", [name for name in BAD_SHARD_NAMES if "\0" not in name])
def test_bad_shard_names_are_refused_before_anything_is_opened(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({"norm": name}))
    refused(sharded, UnsafeFile, "shard name")


# Folders that read


def test_single_and_sharded_folders_read_alike(single, sharded, tensors):
    first, second = open_local(single), open_local(sharded)
    for source in (first, second):
        assert isinstance(source, TensorSource)
        assert list(source.tensors) == sorted(tensors)
        assert source.config == CONFIG
        assert source.notes == ()
        for name, array in tensors.items():
            np.testing.assert_array_equal(source.rows(name, 1, 3), array[1:3])
    assert first.tensors == second.tensors
    assert first.label == str(single)


def test_a_single_file_reads_with_the_config_beside_it(single, tensors):
    source = open_local(single / "model.safetensors")
    assert source.config == CONFIG
    assert source.label == str(single / "model.safetensors")
    np.testing.assert_array_equal(source.rows("embed"), tensors["embed"])


def test_wrong_calls(single):
    source = open_local(single)
    with pytest.raises(LookupError, match="no tensor 'x'"):
        source.rows("x")
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.rows("embed")


def test_bfloat16_folder(tmp_path, tensors):
    source = open_local(write_model_folder(tmp_path / "m", tensors, CONFIG, n_shards=2, bf16=True))
    assert {info.dtype for info in source.tensors.values()} == {"BF16"}
    np.testing.assert_allclose(source.rows("norm"), tensors["norm"], rtol=2**-8)


def test_order_of_files_and_tensors_does_not_matter(tmp_path, tensors, sharded):
    backwards = dict(reversed(tensors.items()))
    other = write_model_folder(tmp_path / "other", backwards, CONFIG, n_shards=3)
    assert open_local(other).tensors == open_local(sharded).tensors
    assert list(open_local(other).tensors) == list(open_local(sharded).tensors)


def test_total_size_of_old_transformers_counts_bool_as_an_eighth(tmp_path, tensors):
    folder = write_model_folder(tmp_path / "m", {**tensors, "mask": np.ones((3, 3), bool)}, CONFIG, n_shards=2)
    edit_index(folder, lambda index: index["metadata"].update(total_size=4 * 48 + 9 / 8))
    assert "mask" in open_local(folder).tensors


@pytest.mark.parametrize("total", [191, 192.5, 0])
def test_a_wrong_total_size_is_noted(sharded, total):
    assert open_local(sharded).notes == ()
    edit_index(sharded, lambda index: index["metadata"].update(total_size=total))
    assert open_local(sharded).notes == (f"the index states a total_size of {total}; its tensors have 192 bytes",)


def test_converters_leave_a_tied_head_in_the_index(sharded):
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": FIRST}))
    source = open_local(sharded)
    assert "lm_head.weight" not in source.tensors
    assert source.notes == ("the index lists 'lm_head.weight', which no shard holds: taken as tied",)
    (sharded / "config.json").write_text(json.dumps({**CONFIG, "tie_word_embeddings": False}))
    refused(sharded, MalformedFile, "'lm_head.weight' is not in its shard")


def test_a_head_in_another_shard_than_its_index_says(sharded, tensors):
    write_model_folder(sharded, {**tensors, "lm_head.weight": tensors["embed"]}, CONFIG, n_shards=2)
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": SECOND}))
    refused(sharded, MalformedFile, "'lm_head.weight' is not in its shard")


def test_configs_may_hold_the_numbers_that_python_writes(single):
    odd = {**CONFIG, "model_max_length": int(1e30), "time_step_limit": [0.0, float("inf")], "x": float("nan")}
    (single / "config.json").write_text(json.dumps(odd))
    assert open_local(single).config["time_step_limit"] == [0.0, float("inf")]


def test_notes_name_what_was_left_alone(single):
    (single / "modeling_x.py").write_text("raise SystemExit")
    (single / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (single / "config.json").write_text(json.dumps({**CONFIG, "auto_map": {"AutoModel": "modeling_x.X"}}))
    notes = open_local(single).notes
    assert len(notes) == 3
    assert "'auto_map'" in notes[0]
    assert "'modeling_x.py'" in notes[1]
    assert "'pytorch_model.bin'" in notes[2]


# Folders that are refused


def test_index_and_shards_that_disagree(sharded, tensors):
    good = (sharded / INDEX_NAME).read_text()

    def with_index(change, error, pattern):
        (sharded / INDEX_NAME).write_text(good)
        edit_index(sharded, change)
        refused(sharded, error, pattern)

    with_index(lambda i: i["weight_map"].update(extra=FIRST), MalformedFile, "'extra' is not in its shard")
    with_index(lambda i: i["weight_map"].pop("norm"), MalformedFile, "shard .*'norm' is not in the index")
    with_index(lambda i: i["weight_map"].update(norm=FIRST), MalformedFile, "'norm' is not in its shard")
    with_index(lambda i: i["weight_map"].update(norm="model-3.safetensors"), MalformedFile, "it is missing")
    (sharded / INDEX_NAME).write_text(good)
    (sharded / FIRST).write_bytes(encode_safetensors(tensors))
    refused(sharded, UnsafeFile, "is also in shard")


def test_missing_shard_and_shards_without_index(sharded):
    (sharded / SECOND).unlink()
    refused(sharded, MalformedFile, f"shard '{SECOND}': it is missing.*download is incomplete")
    (sharded / INDEX_NAME).unlink()
    refused(sharded, MalformedFile, "shards without their index")


def test_a_shard_that_is_a_folder(sharded):
    (sharded / SECOND).unlink()
    (sharded / SECOND).mkdir()
    refused(sharded, UnsafeFile, f"shard '{SECOND}': a folder")


@posix_only
def test_a_shard_that_is_a_fifo_a_socket_or_a_device(sharded, tmp_path, monkeypatch):
    (sharded / SECOND).unlink()
    os.mkfifo(sharded / SECOND)
    refused(sharded, UnsafeFile, "a FIFO")
    (sharded / SECOND).unlink()
    monkeypatch.chdir(sharded)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(SECOND)
        refused(sharded, UnsafeFile, "a socket")
    (sharded / SECOND).unlink()
    (sharded / SECOND).symlink_to("/dev/zero")
    refused(sharded, UnsafeFile, "leaves the folder")
    refused(Path("/dev/zero"), UnsafeFile, "neither a file nor a folder")


def test_whole_model_beside_shards(sharded, tensors):
    file = sharded / "model.safetensors"
    file.write_bytes(encode_safetensors(tensors))
    assert len(open_local(sharded).tensors) == 4  # the same weights twice are one model
    changed = {**tensors, "norm": tensors["norm"] * np.float32(1.001)}
    file.write_bytes(encode_safetensors(changed))
    refused(sharded, UnsafeFile, "file 'model.safetensors': tensor 'norm' differs")
    file.write_bytes(encode_safetensors({**tensors, "more": tensors["norm"]}))
    refused(sharded, UnsafeFile, "'more' differs")
    file.write_bytes(encode_safetensors({**tensors, "norm": tensors["norm"].T.copy()}))
    refused(sharded, UnsafeFile, "'norm' differs")


def test_index_of_one_file_called_like_the_whole_model(single, tensors):
    (single / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert len(open_local(single).tensors) == 4


@posix_only
def test_links(single, sharded, tmp_path, tensors):
    inside = single / "weights" / "real.safetensors"
    inside.parent.mkdir()
    (single / "model.safetensors").rename(inside)
    (single / "model.safetensors").symlink_to(inside)
    assert len(open_local(single).tensors) == 4
    outside = tmp_path / "real.safetensors"
    inside.rename(outside)
    refused(single, MalformedFile, "a link to nothing")
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").symlink_to(outside)
    refused(single, UnsafeFile, "a link that leaves the folder")
    (sharded / "config.json").unlink()
    (sharded / "config.json").symlink_to("/etc/hostname")
    refused(sharded, UnsafeFile, "config 'config.json': a link that leaves")
    (tmp_path / "link").symlink_to(write_model_folder(tmp_path / "third", tensors, CONFIG))
    assert len(open_local(tmp_path / "link").tensors) == 4  # the user named this link


def cache_repository(cache: Path, repository: str, tensors) -> tuple[Path, Path]:
    """Snapshot folder and weight blob of one repository, laid out as huggingface_hub lays it out."""
    snapshot, blobs = cache / repository / "snapshots" / ("0" * 40), cache / repository / "blobs"
    blobs.mkdir(parents=True)
    write_model_folder(snapshot, tensors, CONFIG)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).rename(blobs / f"digest-of-{name}")
        (snapshot / name).symlink_to(f"../../blobs/digest-of-{name}")
    return snapshot, blobs / "digest-of-model.safetensors"


def relink(link: Path, target: str | Path) -> None:
    link.unlink()
    link.symlink_to(target)


@posix_only
def test_links_of_the_hub_cache(tmp_path, tensors):
    first, own = cache_repository(tmp_path, "models--org--a", tensors)
    assert len(open_local(first).tensors) == 4
    relink(first / "model.safetensors", own)  # absolute, as huggingface_hub links across drives
    assert len(open_local(first).tensors) == 4
    (tmp_path / "alias").symlink_to(tmp_path / "models--org--a")
    assert len(open_local(tmp_path / "alias" / "snapshots" / ("0" * 40)).tensors) == 4
    _, others = cache_repository(tmp_path, "models--org--b", tensors)
    relink(first / "model.safetensors", others)
    refused(first, UnsafeFile, "leaves the folder")
    relink(first / "model.safetensors", own)
    relink(own, others)
    refused(first, UnsafeFile, "leaves the folder")


@posix_only
def test_links_through_the_shared_store_of_the_hub_cache(tmp_path, tensors):
    library = pytest.importorskip("huggingface_hub.utils._shared_blobs")
    snapshot, blob = cache_repository(tmp_path, "models--org--a", tensors)
    shared = library.shared_blob_path(tmp_path, "ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    refused(snapshot, UnsafeFile, "leaves the folder")  # a store without its marker is none
    (library.shared_blobs_dir(tmp_path) / library.SHARED_BLOBS_MARKER_NAME).write_text("1\n")
    assert library.shared_blob_target(blob, tmp_path) == shared
    assert len(open_local(snapshot).tensors) == 4
    relink(snapshot / "model.safetensors", shared)  # past the repository's own blobs
    refused(snapshot, UnsafeFile, "leaves the folder")
    relink(snapshot / "model.safetensors", "../../blobs/digest-of-model.safetensors")
    shared.rename(shared.with_name("weights"))
    relink(blob, shared.with_name("weights"))
    refused(snapshot, UnsafeFile, "leaves the folder")


@posix_only
@pytest.mark.parametrize(("first", "second"), [("config.json", "CONFIG.json"), ("\u00e9.json", "e\u0301.json")])
def test_names_that_some_systems_take_for_one(single, first, second):
    for name in (first, second):
        (single / name).write_text("{}")
    if len(list(single.iterdir())) < 3 + (first != "config.json"):
        pytest.skip("this file system folds names")
    refused(single, UnsafeFile, "one file on some systems")


def test_readme_and_readme_are_no_reason_to_refuse(single):
    (single / "README.md").write_text("")
    (single / "readme.md").write_text("")
    assert open_local(single).notes == ()


PICKLES = [
    "pytorch_model.bin",
    "m.pt",
    "m.pth",
    "m.ckpt",
    "m.pkl",
    "m.joblib",
    "m.dill",
    "pytorch_model-00001-of-00002.bin",
]


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_with_a_way_out(tmp_path, name):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / name).write_bytes(b"\x80\x02.")
    for path in (folder, folder / name):
        message = refused(path, UnsupportedFile, "pickle.*expected safetensors")
        assert "weights_only=True" in message
        assert "save_file" in message
        assert "spaces/safetensors/convert" in message
        assert f"torch.load('{name}'" in message


@pytest.mark.parametrize("name", ["m.npz", "m.npy", "tf_model.h5", "m.keras", "flax_model.msgpack", "m.onnx"])
def test_other_frameworks_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(10))
    refused(tmp_path, UnsupportedFile, re.escape(name))
    refused(tmp_path / name, UnsupportedFile, "expected safetensors")


def test_archives_are_refused_unopened(tmp_path, single):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("../../x", "x")
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        archive.add(single, "m")
    for name in ("m.zip", "m.tar"):
        refused(tmp_path / name, UnsupportedFile, "an archive.*Unpack")
    (single / "model.safetensors").write_bytes((tmp_path / "m.zip").read_bytes())
    refused(single, UnsupportedFile, "a zip archive or PyTorch pickle file")


@pytest.mark.parametrize(("content", "pattern"), [(POINTER, "Git-LFS.*git lfs pull"), (PAGE, "web page.*sign in")])
def test_pointer_texts_and_pages(single, content, pattern):
    (single / "model.safetensors").write_bytes(content)
    refused(single, MalformedFile, f"file 'model.safetensors'.*{pattern}")
    (single / "config.json").write_bytes(content)
    refused(single, MalformedFile, pattern)


def test_incomplete_download(single):
    file = single / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    refused(single, MalformedFile, f"{len(content) - 10} of {len(content)} bytes are present; expected all.*incomplete")


def test_config_is_needed(single):
    (single / "config.json").unlink()
    refused(single, MalformedFile, "no config.json")
    refused(single / "model.safetensors", UnsupportedFile, "no config.json beside it")
    (single / "config.json").write_text('{"a":1,"a":2}')
    refused(single, UnsafeFile, "config 'config.json': the key 'a' twice")
    (single / "config.json").write_text("[]")
    refused(single, MalformedFile, "a list at the top level")


def test_parts_that_are_no_model(tmp_path, sharded, single):
    refused(sharded / FIRST, UnsupportedFile, "one shard of several")
    (single / "model.safetensors").rename(single / "adapter_model.safetensors")
    refused(single, UnsupportedFile, r"an adapter without its base.*base\+adapter")
    (single / "adapter_model.safetensors").rename(single / "other.safetensors")
    refused(single, UnsupportedFile, "only 'other.safetensors'.*Name the file itself")
    assert len(open_local(single / "other.safetensors").tensors) == 4
    (single / "other.safetensors").rename(single / "x.gguf")
    refused(single, UnsupportedFile, "Name one of the GGUF files")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", UnsupportedFile, "no weights")
    (tmp_path / "note.txt").write_text("")
    refused(tmp_path / "note.txt", UnsupportedFile, "another kind of file")


@pytest.mark.parametrize("path", ["", "no/such/path", "a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_paths_to_nothing_are_usage_errors(path):
    with pytest.raises(UsageError):
        open_local(path)


def test_names_of_hostile_files_are_escaped(tmp_path):
    (tmp_path / "a\u202eb.bin").write_bytes(b"\x80\x02.")
    assert r"a\u202eb.bin" in refused(tmp_path, UnsupportedFile, "pickle")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_unreadable_files_are_refused(single):
    (single / "model.safetensors").chmod(0)
    refused(single, MalformedFile, "Permission denied")


# Real files


def shared_model(name: str) -> Path:
    root = os.environ.get("WHORL_SHARED") or Path(__file__).parents[2] / "shared"
    path = Path(root) / "models" / name
    if not path.is_dir():
        pytest.skip("the shared models are not here")
    return path


def test_shared_llama_reads_as_the_reference_library_reads_it():
    from safetensors import safe_open

    path = shared_model("llama2xs")
    source = open_local(path)
    assert source.config["model_type"] == "llama"
    with safe_open(path / "model.safetensors", "np") as theirs:
        assert set(theirs.keys()) == source.tensors.keys()
        for name in source.tensors:
            np.testing.assert_array_equal(source.rows(name), theirs.get_tensor(name))


def test_shared_pickle_model_is_refused():
    message = refused(shared_model("rxnmapper-albert"), UnsupportedFile, "only pickle weights")
    assert "'pytorch_model.bin'" in message


def test_shared_adapters_pass_the_header_check():
    for path in sorted(shared_model("roberta-lora-agnews").glob("*/adapter_model.safetensors")):
        assert SafetensorsFile(path).tensors
        refused(path.parent, UnsupportedFile, "an adapter")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_of_transformers_read_back(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    for size, n_files in (("1GB", 1), ("5KB", 2)):
        folder = tmp_path / size
        model.save_pretrained(folder, max_shard_size=size)
        assert len(list(folder.glob("*.safetensors"))) >= n_files
        source = FolderSource(folder)
        state = model.state_dict()
        assert source.tensors.keys() == state.keys()
        for name, tensor in state.items():
            np.testing.assert_array_equal(source.rows(name), tensor.float().numpy())
