"""Our merges against mergekit's on the same models, file against file."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import llama_folder
from whorl.attacks import attack
from whorl.testing import write_model_folder

pytest.importorskip("torch")
pytest.importorskip("mergekit")

SHARES = (0.7, 0.4)
CASES = {
    "linear": ({}, "linear", {"normalize": False}),
    "task": ({}, "task_arithmetic", {"normalize": False}),
    "ties": ({"density": 0.5}, "ties", {"normalize": True}),
    "dare": ({"density": 1.0}, "dare_linear", {"normalize": False}),
    "dare-ties": ({"density": 1.0}, "dare_ties", {"normalize": True}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and two models that noise of different sizes was added to."""
    root, base = tmp_path_factory.mktemp("merge"), llama_folder.tensors(0)
    rng = np.random.default_rng(1)

    def written(name, size):
        moved = {
            key: (array + size * rng.standard_normal(array.shape)).astype(np.float32) for key, array in base.items()
        }
        return write_model_folder(root / name, moved, llama_folder.config())

    return [written("base", 0.0), written("one", 0.01), written("two", 0.02)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the peer
@pytest.mark.parametrize("method", CASES)
def test_a_merge_is_that_of_mergekit(method, folders, tmp_path):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options, name, parameters = CASES[method]
    base, *tuned = folders
    given = {} if method == "linear" else {"base": str(base)}
    ours = attack("merge", tuned, tmp_path / "ours", method=method, coefficients=list(SHARES), **given, **options)
    models = [
        {"model": str(folder), "parameters": {"weight": share, **options}}
        for folder, share in zip(tuned, SHARES, strict=True)
    ]
    config = {"merge_method": name, "models": models, "parameters": parameters, "dtype": "float32"}
    config |= {} if method == "linear" else {"base_model": str(base)}
    theirs = tmp_path / "theirs"
    run_merge(MergeConfiguration.model_validate(config), str(theirs), MergeOptions(quiet=True, copy_tokenizer=False))
    found, wanted = load_file(ours.path / "model.safetensors"), load_file(next(theirs.glob("*.safetensors")))
    assert set(wanted) <= set(found)
    for tensor in wanted:
        np.testing.assert_allclose(found[tensor], wanted[tensor], atol=2e-6, err_msg=tensor)
