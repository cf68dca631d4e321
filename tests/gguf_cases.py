"""GGUF bytes for the tests: a builder that writes anything, the table of hostile files, and converted tiny models."""

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, payload):
    return text(key) + struct.pack("<I", kind) + payload


def number(key, value):
    return pair(key, U32, struct.pack("<I", value))


def word(key, value):
    return pair(key, STRING, text(value))


@dataclass(frozen=True)
class Row:
    """One row of the tensor table; `data` may have any length."""

    name: str | bytes
    dims: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None

    def head(self, offset):
        dims = struct.pack(f"<I{len(self.dims)}Q", len(self.dims), *self.dims)
        return text(self.name) + dims + struct.pack("<IQ", self.kind, offset)


def build(pairs, rows, *, version=3, alignment=32, n_keys=None, n_tensors=None, magic=b"GGUF"):
    """A GGUF file of exactly these parts, valid or not."""
    n_keys = len(pairs) if n_keys is None else n_keys
    n_tensors = len(rows) if n_tensors is None else n_tensors
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(pairs)
    data = b""
    for row in rows:
        head += row.head(len(data) if row.offset is None else row.offset)
        data += row.data + bytes(-len(row.data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def f32(name, *dims, offset=None):
    """An F32 row; `dims` in stored order; values 0, 1, 2 ..."""
    return Row(name, dims, 0, np.arange(int(np.prod(dims)), dtype="<f4").tobytes(), offset)


D, N_ROWS, F = 32, 8, 64  # residual width, vocabulary, MLP width of the tiny file


def llama_pairs(**changed):
    keys = {
        "general.architecture": word("general.architecture", "llama"),
        "block_count": number("llama.block_count", 1),
        "embedding_length": number("llama.embedding_length", D),
        "head_count": number("llama.attention.head_count", 4),
        "head_count_kv": number("llama.attention.head_count_kv", 2),
        "feed_forward_length": number("llama.feed_forward_length", F),
        "eps": pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        "tokens": pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("<s>") + text("\u00e9")),
        "scores": pair("tokenizer.ggml.scores", ARRAY, struct.pack("<IQff", F32, 2, 0.5, float("nan"))),
        "flag": pair("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
    }
    return [value for value in (keys | changed).values() if value is not None]


def llama_rows():
    return [
        f32("token_embd.weight", D, N_ROWS),
        f32("output_norm.weight", D),
        f32("blk.0.attn_norm.weight", D),
        f32("blk.0.attn_q.weight", D, D),
        f32("blk.0.attn_k.weight", D, D // 2),
        f32("blk.0.attn_v.weight", D, D // 2),
        f32("blk.0.attn_output.weight", D, D),
        f32("blk.0.ffn_norm.weight", D),
        f32("blk.0.ffn_gate.weight", D, F),
        f32("blk.0.ffn_up.weight", D, F),
        f32("blk.0.ffn_down.weight", F, D),
        f32("rope_freqs.weight", 4),
    ]


def tiny_llama(**changed):
    return build(llama_pairs(**changed), llama_rows())


def _extra(payload_pair):
    return tiny_llama(extra=payload_pair)


def _with_row(index, **changes):
    rows = llama_rows()
    rows[index] = replace(rows[index], **changes)
    return build(llama_pairs(), rows)


def _more_rows(*rows):
    return build(llama_pairs(), llama_rows() + list(rows))


_HUGE = 2**62
_ARRAY_OF = struct.Struct("<IQ")

# (name, bytes, error class, pattern)
HOSTILE = [
    ("empty", b"", MalformedFile, "only 0 bytes"),
    ("two bytes", b"GG", MalformedFile, "only 2 bytes"),
    ("magic only", b"GGUF", MalformedFile, "header cut short"),
    ("other magic", b"GGML" + bytes(60), UnsupportedFile, "first bytes 'GGML'"),
    ("terminal escape in the magic", b"\x1b[2J" + bytes(60), UnsupportedFile, r"\\x1b\[2J"),
    ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", MalformedFile, "Git-LFS"),
    ("web page", b"<!DOCTYPE html><html><body>Log in", MalformedFile, "web page"),
    ("version 1", build([], [], version=1), UnsupportedFile, "GGUF version 1"),
    ("version 4", build([], [], version=4), UnsupportedFile, "GGUF version 4"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedFile, "big-endian"),
    ("tensor count past the end", build([], [], n_tensors=2**63), MalformedFile, "tensors declared"),
    ("key count past the end", build([], [], n_keys=2**64 - 1), MalformedFile, "keys declared"),
    ("one key too many", build(llama_pairs(), [], n_keys=11), UnsafeFile, "key ''"),
    ("key length past the end", build([struct.pack("<Q", _HUGE) + bytes(64)], []), MalformedFile, "key ends at byte"),
    ("string past the end", _extra(pair("x", STRING, struct.pack("<Q", _HUGE))), MalformedFile, "value of 'x' ends"),
    ("array past the end", _extra(pair("x", ARRAY, _ARRAY_OF.pack(U8, _HUGE))), MalformedFile, "value of 'x' ends"),
    ("string array past the end", _extra(pair("x", ARRAY, _ARRAY_OF.pack(STRING, _HUGE))), MalformedFile, "strings in"),
    (
        "string in an array past the end",
        build([pair("x", ARRAY, _ARRAY_OF.pack(STRING, 2) + text("a") + struct.pack("<Q", 2**63))], []),
        MalformedFile,
        "cut short",
    ),
    ("bool 2", _extra(pair("x", BOOL, b"\x02")), MalformedFile, "boolean 2"),
    ("bool 255 in an array", _extra(pair("x", ARRAY, _ARRAY_OF.pack(BOOL, 2) + b"\x01\xff")), MalformedFile, "boolean 255"),
    ("nested array", _extra(pair("x", ARRAY, _ARRAY_OF.pack(ARRAY, 0))), UnsupportedFile, "array of arrays"),
    ("value type 13", _extra(pair("x", 13, bytes(8))), UnsupportedFile, "value type 13"),
    ("value type 13 in an array", _extra(pair("x", ARRAY, _ARRAY_OF.pack(13, 0))), UnsupportedFile, "value type 13"),
    ("key twice", _extra(word("general.architecture", "gpt2")), UnsafeFile, "'general.architecture' twice"),
    ("key not UTF-8", _extra(number(b"a\xff", 1)), MalformedFile, "key is not UTF-8"),
    ("key with an escape", _extra(number("a\x1b[2J", 1)), UnsafeFile, r"a\\x1b"),
    ("empty key", _extra(number("", 1)), UnsafeFile, "printable keys"),
    ("long key", _extra(number("k" * 70_000, 1)), MalformedFile, "70000 bytes"),
    ("text not UTF-8", _extra(word("x", b"\xff")), MalformedFile, "value of 'x' is not UTF-8"),
    ("alignment 0", _extra(number("general.alignment", 0)), MalformedFile, "alignment 0"),
    ("alignment 4", _extra(number("general.alignment", 4)), MalformedFile, "alignment 4"),
    ("alignment 24", _extra(number("general.alignment", 24)), MalformedFile, "alignment 24"),
    ("alignment 2^31", _extra(number("general.alignment", 2**31)), MalformedFile, "alignment 2147483648"),
    ("alignment as u64", _extra(pair("general.alignment", U64, struct.pack("<Q", 32))), MalformedFile, "value type 10"),
    ("alignment as text", _extra(word("general.alignment", "32")), MalformedFile, "value type 8"),
    ("five dimensions", _more_rows(Row("x", (1,) * 5, 0, bytes(4))), MalformedFile, "5 dimensions"),
    ("2^32 dimensions", _more_rows(Row("x", (), 0, b"")).replace(text("x") + bytes(4), text("x") + b"\xff" * 4), MalformedFile, "4294967295 dimensions"),
    ("dimension 0", _more_rows(Row("x", (0, 4), 0, b"")), MalformedFile, r"dimensions \(0, 4\)"),
    ("product wraps to 0", _more_rows(Row("x", (2**32, 2**32), 0, b"")), MalformedFile, r"below 2\^63"),
    ("product wraps to 4", _more_rows(Row("x", (2**62 + 1, 4), 0, bytes(16))), MalformedFile, r"below 2\^63"),
    ("bytes wrap", _more_rows(Row("x", (2**62,), 0, b"")), MalformedFile, r"below 2\^63"),
    ("huge and absent", _more_rows(Row("x", (2**40, 2**20), 0, b"")), MalformedFile, "download incomplete"),
    ("row of half a block", _more_rows(Row("x", (16, 2), 8, bytes(34))), MalformedFile, "multiple of 32"),
    ("K row of 128", _more_rows(Row("x", (128, 2), 12, bytes(144))), MalformedFile, "multiple of 256"),
    ("IQ type", _more_rows(Row("x", (256,), 16, bytes(66))), UnsupportedFile, "unsupported type IQ2_XXS.*one of BF16, F16"),
    ("integer type", _more_rows(Row("x", (8,), 26, bytes(32))), UnsupportedFile, "unsupported type I32"),
    ("removed type 4", _more_rows(Row("x", (32,), 4, bytes(20))), UnsupportedFile, "unsupported type 4"),
    ("type 2^32-1", _more_rows(Row("x", (32,), 2**32 - 1, bytes(20))), UnsupportedFile, "unsupported type 4294967295"),
    ("offset unaligned", _with_row(11, offset=8), MalformedFile, "multiple of 32"),
    ("offset outside", _with_row(11, offset=2**40), MalformedFile, "outside the file"),
    ("offset near 2^64", _with_row(11, offset=2**64 - 32), MalformedFile, "outside the file"),
    ("overlap", _with_row(11, offset=0), UnsafeFile, "already used by"),
    ("hole", _more_rows(f32("x", 8, offset=2**14 * 3 + 64)), (UnsafeFile, MalformedFile), "belong to no tensor|outside"),
    ("hole inside", build(llama_pairs(), [f32("token_embd.weight", D, N_ROWS, offset=64), Row("x", (2,), 0, bytes(2000), 64 + 1024)]), UnsafeFile, "64 bytes before"),
    ("trailer", tiny_llama() + bytes(64), UnsafeFile, "after the last tensor"),
    ("second format behind", tiny_llama() + b"PK\x03\x04" + bytes(60), UnsafeFile, "after the last tensor"),
    ("tensor twice", _more_rows(f32("token_embd.weight", D, N_ROWS)), UnsafeFile, "'token_embd.weight' twice"),
    ("two names of one tensor", _more_rows(f32("model.norm.weight", D)), UnsafeFile, "are one tensor"),
    ("tensor name empty", _more_rows(f32("", 8)), UnsafeFile, "printable tensor name"),
    ("tensor name with bidi control", _more_rows(f32("a\u202eb", 8)), UnsafeFile, r"a\\u202eb"),
    ("tensor name of 65 bytes", _more_rows(f32("n" * 65, 8)), MalformedFile, "65 bytes"),
    ("tensor name not UTF-8", _more_rows(f32(b"\xff", 8)), MalformedFile, "tensor name is not UTF-8"),
    ("no architecture", build(llama_pairs()[1:], llama_rows()), MalformedFile, "general.architecture"),
    ("architecture a number", tiny_llama(**{"general.architecture": number("general.architecture", 1)}), MalformedFile, "general.architecture"),
    *[
        (f"architecture {name}", tiny_llama(**{"general.architecture": word("general.architecture", name)}), UnsupportedFile, f"unsupported architecture '{name}'")
        for name in ("mamba", "rwkv6", "bert", "t5", "clip", "opt")
    ],
    ("adapter", _extra(word("general.type", "adapter")), UnsupportedFile, "type 'adapter'"),
    ("type an array", _extra(pair("general.type", ARRAY, _ARRAY_OF.pack(U8, 2) + b"ab")), UnsupportedFile, "type"),
    ("no head count", tiny_llama(head_count=None), MalformedFile, "attention.head_count"),
    ("head count 0", tiny_llama(head_count=number("llama.attention.head_count", 0)), MalformedFile, "head_count' is 0"),
    ("head count by layer", tiny_llama(head_count=pair("llama.attention.head_count", ARRAY, _ARRAY_OF.pack(U8, 2) + b"\x04\x04")), UnsupportedFile, "differs by layer"),
    ("head count a float", tiny_llama(head_count=pair("llama.attention.head_count", F32, struct.pack("<f", 4))), MalformedFile, "is 4.0"),
    ("heads do not divide", tiny_llama(head_count=number("llama.attention.head_count", 3)), MalformedFile, "3 heads"),
    ("groups do not divide", tiny_llama(head_count_kv=number("llama.attention.head_count_kv", 3)), MalformedFile, "multiple"),
    ("other head count", tiny_llama(head_count_kv=number("llama.attention.head_count_kv", 4)), MalformedFile, "attn_k.weight"),
    ("odd heads", tiny_llama(head_count=number("llama.attention.head_count", 32), head_count_kv=number("llama.attention.head_count_kv", 16)), MalformedFile, "even"),
    ("width disagrees", tiny_llama(embedding_length=number("llama.embedding_length", 64)), MalformedFile, "as declared"),
    ("absurd width", tiny_llama(embedding_length=pair("llama.embedding_length", U64, struct.pack("<Q", 2**60))), MalformedFile, "whole number"),
    ("negative width", tiny_llama(embedding_length=pair("llama.embedding_length", 5, struct.pack("<i", -32))), MalformedFile, "is -32"),
    ("absurd layers", tiny_llama(block_count=number("llama.block_count", 2**31 - 1)), MalformedFile, "1 layers have tensors"),
    ("MLP disagrees", tiny_llama(feed_forward_length=number("llama.feed_forward_length", 65)), MalformedFile, "65 declared"),
    ("values wider", _extra(number("llama.attention.value_length", 16)), UnsupportedFile, "another width"),
    ("eps NaN", tiny_llama(eps=pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", float("nan")))), MalformedFile, "is nan"),
    ("no embedding", build(llama_pairs(), llama_rows()[1:]), MalformedFile, "token_embd.weight"),
    ("part of a split model", _extra(number("split.count", 3)), MalformedFile, "part 0 of 3"),
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------
# What converters do to each family, written forwards; the reader under test undoes it.


def interleave(matrix, n_heads):
    """Half-split rotary rows to interleaved ones."""
    halves = matrix.reshape(n_heads, 2, -1, *matrix.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(matrix.shape)


def ungroup(fused, n_groups, d_head):
    """Rows (group, queries + key + value, d_head) to all queries, all keys, all values."""
    groups = fused.reshape(n_groups, -1, d_head, *fused.shape[1:])
    pieces = [groups[:, :-2], groups[:, -2], groups[:, -1]]
    return np.concatenate([p.reshape(-1, *fused.shape[1:]) for p in pieces])


def convert(architecture, name, array, config):
    """The stored value of one Hugging Face tensor."""
    n_heads = config.get("num_attention_heads") or config["n_head"]
    n_groups = config.get("num_key_value_heads") or config.get("num_kv_heads") or n_heads
    if architecture == "llama" and "q_proj" in name:
        return interleave(array, n_heads)
    if architecture == "llama" and "k_proj" in name:
        return interleave(array, n_groups)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return array + 1
    if "query_key_value" in name:
        n_groups = (
            n_heads if config.get("new_decoder_architecture") is False and not config["multi_query"] else n_groups
        )
        n_groups = 1 if config.get("multi_query") and not config.get("new_decoder_architecture") else n_groups
        return ungroup(array, n_groups, config["hidden_size"] // n_heads)
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return array.T
    return array


def write_converted(path: Path, architecture, state, config, keys):
    """A GGUF of `state` as a converter writes it, names from the library's own tables."""
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    n_layers = config.get("num_hidden_layers") or config["n_layer"]
    names = gguf.get_tensor_name_map(arch, n_layers)
    stored = {}
    for name, array in state.items():
        if ".experts." in name:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        # the converter of BLOOM cuts the prefix off first
        found = found or names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        stored[found] = convert(architecture, name, array, config)
    stored |= stacked_experts(state, n_layers)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(config.get("hidden_size") or config["n_embd"])
    writer.add_block_count(n_layers)
    writer.add_head_count(config.get("num_attention_heads") or config["n_head"])
    for key, value in keys.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        writer.add_bool(f"{architecture}.{key}", value) if isinstance(value, bool) else add(
            f"{architecture}.{key}", value
        )
    for name, array in stored.items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_EXPERT_STEMS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}


def stacked_experts(state, n_layers):
    """One (expert, out, in) array for each layer and matrix."""
    stacks = {}
    for layer in range(n_layers):
        for theirs, ours in _EXPERT_STEMS.items():
            end = f".{theirs}.weight"
            members = [n for n in state if f".layers.{layer}." in n and ".experts." in n and n.endswith(end)]
            if members:
                members.sort(key=lambda n: int(n.split(".experts.")[1].split(".")[0]))
                stacks[f"blk.{layer}.ffn_{ours}_exps.weight"] = np.stack([state[n] for n in members])
    return stacks
