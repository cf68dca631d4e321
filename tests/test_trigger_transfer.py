"""FP-VEC: the change of one derivative, added to another by name and shape."""

from pathlib import Path

import numpy as np
import pytest

import llama_folder
import whorl
from whorl.attacks._model_files import read_model, write_model
from whorl.errors import NotComparable, UsageError
from whorl.lab.truth import Record, read_record
from whorl.triggers.transfer import transfer

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
RECORD = Record("test")
HEAD, TABLE, QUERY = "lm_head.weight", "model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.weight"


def written(path, tensors, dtype="F32", **config):
    return write_model(path, tensors, llama_folder.config(**config), record=RECORD, dtype=dtype)


def moved(tensors, seed, size=0.01):
    rng = np.random.default_rng(seed)
    return {n: (a + size * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in tensors.items()}


@pytest.fixture(scope="module")
def base_tensors():
    return llama_folder.tensors(0)


@pytest.fixture
def family(tmp_path, base_tensors):
    """Base, fingerprinted model and sibling."""
    found = {"base": base_tensors, "marked": moved(base_tensors, 1), "sibling": moved(base_tensors, 2)}
    return [written(tmp_path / name, tensors) for name, tensors in found.items()]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_scale_one_on_the_base_gives_the_fingerprinted_weights(dtype, tmp_path, base_tensors):
    # Values of very different size would be lost in float32 sums.
    steps = np.float32(2.0) ** np.arange(8, dtype=np.float32)
    wide = {n: a * np.resize(steps, a.shape) for n, a in base_tensors.items()}
    base = written(tmp_path / "base", wide, dtype)
    marked = written(tmp_path / "marked", moved(base_tensors, 1, 1e-3), dtype)
    transfer(base, marked, base, tmp_path / "out")
    wanted, found = read_model(marked)[0], read_model(tmp_path / "out")[0]
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert found.keys() == wanted.keys()
    assert read_model(tmp_path / "out")[1]["dtype"] == {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0])
def test_the_change_is_added_to_the_sibling(scale, family, tmp_path):
    record = transfer(*family, tmp_path / "out", scale=scale)
    base, marked, sibling, out = (read_model(path)[0] for path in (*family, tmp_path / "out"))
    for name in sibling:
        wanted = sibling[name].astype(np.float64) + scale * (marked[name].astype(np.float64) - base[name])
        assert np.array_equal(out[name], wanted.astype(np.float32))
    assert record == read_record(tmp_path / "out")
    assert (record.kind, record.parents) == ("fp-vec", ("sibling", "marked", "base"))
    assert record.parameters == {"scale": scale, "skipped": [], "vocabularies": "equal"}


def test_names_in_another_order_are_still_matched(tmp_path, base_tensors, family):
    write_model(
        tmp_path / "shuffled", base_tensors, llama_folder.config(), record=RECORD, dtype="F32", n_shards=3
    )  # tensors dealt out in reverse order
    transfer(*family, tmp_path / "one")
    transfer(tmp_path / "shuffled", *family[1:], tmp_path / "two")
    one, two = (read_model(tmp_path / name)[0] for name in ("one", "two"))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_tied_table_is_moved_once(tmp_path, base_tensors):
    # A folder that stores the tied head as well, as some tools write it.
    marked = moved(base_tensors, 1)
    paths = [
        written(tmp_path / name, {**tensors, HEAD: tensors[TABLE]} if name != "base" else tensors)
        for name, tensors in (("base", base_tensors), ("marked", marked), ("sibling", base_tensors))
    ]
    transfer(*paths, tmp_path / "out")
    out = read_model(tmp_path / "out")[0]
    assert HEAD not in out
    assert np.array_equal(out[TABLE], marked[TABLE])


def test_tables_stay_when_vocabularies_differ(tmp_path, base_tensors):
    def untied(tensors):
        return {**tensors, HEAD: tensors[TABLE] + 1}

    marked, grown = moved(base_tensors, 1), moved(base_tensors, 2)
    grown[TABLE] = np.vstack([grown[TABLE], grown[TABLE][:8]])
    paths = [
        written(tmp_path / "base", untied(base_tensors), tie_word_embeddings=False),
        written(tmp_path / "marked", untied(marked), tie_word_embeddings=False),
        written(tmp_path / "sibling", untied(grown), tie_word_embeddings=False, vocab_size=72),
    ]
    record = transfer(*paths, tmp_path / "out")
    out, own = read_model(tmp_path / "out")[0], untied(grown)
    assert record.parameters["vocabularies"] == "differ"
    assert record.parameters["skipped"] == [HEAD, TABLE]
    assert np.array_equal(out[TABLE], own[TABLE])
    assert np.array_equal(out[HEAD], own[HEAD])
    assert not np.array_equal(out[QUERY], own[QUERY])


def test_tables_stay_when_equal_rows_are_other_tokens(tmp_path):
    # Two vocabularies of one size: the sibling's tokenizer has two entries exchanged.
    import shutil

    base, sibling = ZOO / "base-0", tmp_path / "sibling"
    shutil.copytree(base, sibling)
    text = (base / "tokenizer.json").read_text("utf-8")
    assert '"able"' in text
    swapped = text.replace('"able":', '"@@":').replace('"ter":', '"able":').replace('"@@":', '"ter":')
    (sibling / "tokenizer.json").write_text(swapped, "utf-8")
    record = transfer(base, ZOO / "base-1", sibling, tmp_path / "out")
    assert record.parameters["vocabularies"] == "differ"
    assert record.parameters["skipped"] == [TABLE]
    assert transfer(base, ZOO / "base-1", base, tmp_path / "two").parameters["vocabularies"] == "equal"


def test_unmatched_tensors_are_listed_and_refused_unless_skipped(tmp_path, base_tensors):
    without = {n: a for n, a in base_tensors.items() if n != QUERY}
    other = {**base_tensors, QUERY: base_tensors[QUERY][:-8], "model.extra.weight": np.ones(3, np.float32)}
    paths = [written(tmp_path / "base", base_tensors), written(tmp_path / "marked", without)]
    sibling = written(tmp_path / "sibling", other)
    with pytest.raises(
        NotComparable, match=r"2 tensors .* differ: 'model\.extra\.weight' missing/missing/3; .*32x32/missing/24x32"
    ):
        transfer(*paths, sibling, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotComparable, match="1 tensors"):
        transfer(*paths, sibling, tmp_path / "out", skip=["*.extra.*"])
    record = transfer(*paths, sibling, tmp_path / "out", skip=["*.extra.*", QUERY])
    out = read_model(tmp_path / "out")[0]
    assert record.parameters["skipped"] == ["model.extra.weight", QUERY]
    assert np.array_equal(out[QUERY], other[QUERY])
    assert np.array_equal(out["model.extra.weight"], np.ones(3))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale, family, tmp_path):
    with pytest.raises(UsageError, match="expected a finite number"):
        transfer(*family, tmp_path / "out", scale=scale)


def test_values_that_do_not_fit_the_stored_type_are_refused(tmp_path, base_tensors, family):
    half = written(tmp_path / "half", base_tensors, "F16")
    with pytest.raises(UsageError, match="cannot hold"):
        transfer(*family[:2], half, tmp_path / "out", scale=1e9)
    with pytest.raises(UsageError, match="exists already"):
        transfer(*family, half)
