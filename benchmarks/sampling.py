"""Tokens a second of the reference sampler against `model.generate`, row by row and in batches, in one run.

    python benchmarks/sampling.py                       # models of runs/natural/models, else a fresh one of their size
    python benchmarks/sampling.py --model ./folder --rows 64 256 --tokens 128

Both get the same weights, prompts, threads and settings (temperature 1, full softmax). "fixed" draws exactly so many tokens;
"free" lets answers end, at a token that is drawn about once in 48, as sentences do: there `generate` works on rows that have
ended. CPU seconds are counted, so that a busy machine does not decide; ratios compare the medians of interleaved repetitions.
The sampler also keeps log-probabilities and texts, which `generate` does not.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import GenerationConfig

from whorl.lab._llama import ModelSize, config_dict, new_model, tensors_of
from whorl.lab.tokenizer import tokenizer_files, train_tokenizer
from whorl.samplers._opening import quiet
from whorl.samplers.local import open_local
from whorl.samplers.seam import Randomness
from whorl.testing import write_model_folder
from whorl.transcripts.prompts import web50
from whorl.transcripts.record import Decoding, draws

SIZE = ModelSize(d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, d_head=32, d_mlp=384, n_vocab=1024, n_context=256)
ANSWER = 48  # mean length in "free"


def model_folder(given, scratch):
    if given:
        return given
    trained = sorted(Path("runs/natural/models").glob("*/model.safetensors"))
    if trained:
        return str(trained[0].parent.resolve())
    torch.manual_seed(0)
    model = new_model(SIZE)
    folder = write_model_folder(scratch / "fresh", tensors_of(model), config_dict(model))
    tokenizer = train_tokenizer([p.content for p in web50()], SIZE.n_vocab)
    for name, data in tokenizer_files(tokenizer, SIZE.n_context).items():
        (folder / name).write_bytes(data)
    return str(folder)


def common_token(sampler, prompts):
    """The token whose share among drawn tokens is nearest to 1 in 48: an end of text for "free"."""
    found = sampler.sample(draws(prompts[:64], 1), Decoding(max_new_tokens=64, min_new_tokens=64), Randomness())
    counts = torch.bincount(torch.tensor([t for r in found for t in r.response_token_ids]))
    return int((counts / counts.sum() - 1 / ANSWER).abs().argmin())


def ours(sampler, prompts, n_new, end):
    decoding = Decoding(max_new_tokens=n_new, min_new_tokens=n_new if end is None else 0)
    sampler._generator = type(sampler._generator)(sampler._opened.model, "m", (0,) if end is None else (end,))
    return sum(len(r.response_token_ids) for r in sampler.sample(draws(prompts, 1), decoding, Randomness()))


def generate(sampler, prompts, n_new, end, size):
    model, tokenizer = sampler._opened.model, sampler._opened.tokenizer
    tokenizer.padding_side = "left"
    stop = 0 if end is None else end
    settings = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=n_new, pad_token_id=0, eos_token_id=stop,
        min_new_tokens=n_new if end is None else None,
    )  # fmt: skip
    n_tokens = 0
    for start in range(0, len(prompts), size):
        texts = [p.content for p in prompts[start : start + size]]
        given = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.inference_mode(), quiet():
            found = model.generate(**given, generation_config=settings)[:, given["input_ids"].shape[1] :]
        ended = (found == stop).int().cumsum(1)
        n_tokens += int((ended == 0).sum() + (ended[:, -1] > 0).sum()) if end is not None else found.numel()
    return n_tokens


def speed(work, *arguments):
    began = time.process_time()
    n_tokens = work(*arguments)
    return n_tokens / (time.process_time() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256], help="batch sizes; each is one whole batch")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        sampler = open_local(model_folder(options.model, Path(scratch)))
    prompts = web50(n=max(options.rows))
    n_weights = sum(p.numel() for p in sampler._opened.model.parameters())
    print(f"{sampler.model.ref}: {n_weights:,} weights, {options.tokens} tokens, {options.threads} thread(s)")
    for kind, end in (("fixed", None), ("free", common_token(sampler, prompts))):
        single = [speed(generate, sampler, prompts[:4], options.tokens, end, 1) for _ in range(options.repeat)]
        single = statistics.median(single)
        print(f"{kind:6} generate, row by row   {single:8,.0f} tokens/s")
        for size in options.rows:
            sampler.batch_size = size
            pairs = [
                (
                    speed(ours, sampler, prompts[:size], options.tokens, end),
                    speed(generate, sampler, prompts[:size], options.tokens, end, size),
                )
                for _ in range(options.repeat)
            ]
            own, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(
                f"{kind:6} batch {size:4}: whorl {own:8,.0f}, generate {theirs:8,.0f} tokens/s; "
                f"whorl is {own / theirs:.2f} times generate, {own / single:.1f} times row by row"
            )


if __name__ == "__main__":
    main()
