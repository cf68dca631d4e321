"""A small byte-level BPE tokenizer, written as the Hugging Face libraries read it.

512 entries keep the embedding of a 0.3-million-parameter model small; all 256 bytes are entries, so any text encodes.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_VOCAB = 512
END = "<|endoftext|>"
END_ID = 0
END_TOKENS = (END, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>")  # ours, then other families'


def train_tokenizer(pieces: Sequence[str], n_vocab: int = N_VOCAB, n_reserved: int = 0) -> Any:
    """Byte-level BPE (arXiv:1508.07909 over bytes) of a text; a `tokenizers.Tokenizer`.

    Args:
        pieces: Training text; the same pieces give the same tokenizer.
        n_vocab: Entries, at least 257 without the reserved ones: one special entry, 256 bytes, the rest merges.
        n_reserved: Entries `<|r00|>`, `<|r01|>`, ... at the end, which occur in no text; ordinary tokens otherwise.
    """
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(_trained(tuple(pieces), n_vocab - n_reserved))
    tokenizer.add_tokens([AddedToken(f"<|r{i:02d}|>", normalized=False) for i in range(n_reserved)])
    return tokenizer


@lru_cache(maxsize=8)
def _trained(pieces: tuple[str, ...], n_vocab: int) -> str:
    """The tokenizer as JSON: hundreds of models of one study share their text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pieces, trainer=trainer, length=len(pieces))
    return str(tokenizer.to_str())


def tokenizer_files(tokenizer: Any, n_context: int) -> dict[str, bytes]:
    """File name -> bytes of a tokenizer folder that `AutoTokenizer.from_pretrained` opens."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_context,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode("utf-8"),
        "tokenizer_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode("utf-8"),
    }


def load_tokenizer(folder: Path) -> Any:
    """The `tokenizers.Tokenizer` of a model folder."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(tokenizer: Any, pieces: Iterable[str]) -> NDArray[np.int64]:
    """All pieces as one row of token ids, shape (n,), with the end token, where there is one, after each piece."""
    return _encoded(tokenizer.to_str(), tuple(pieces))


@lru_cache(maxsize=8)
def _encoded(tokenizer_json: str, pieces: tuple[str, ...]) -> NDArray[np.int64]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    known = (tokenizer.token_to_id(token) for token in END_TOKENS)
    end = [next((i for i in known if i is not None), None)]
    rows = [[*encoding.ids, *(i for i in end if i is not None)] for encoding in tokenizer.encode_batch(list(pieces))]
    tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    tokens.flags.writeable = False  # shared by all callers
    return tokens
