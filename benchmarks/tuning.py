"""LoRA training of an erase phase against the plain peft + Trainer script with the same settings.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --base ./model --rows 300 --repeats 3

Both train the same 300 mismatched rows with the settings of `whorl.erasure.phases.ERASE` (rank 8 on q_proj and v_proj, batch
8, 5 epochs, 190 updates) in a fresh process each, one thread. The script is what the released code does: rows padded to one
length (512 tokens, or the model's context), labels over question and answer, the collator of transformers. Ours pads to the
longest row of a batch of similar lengths. The losses of the last updates are printed so that it can be seen that both train.
Seconds are those of the training alone, without imports and loading; memory is the peak of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BASE = Path(__file__).parent.parent / "src" / "whorl" / "examples" / "triggers" / "base"


def opened(base):
    from whorl.samplers._opening import open_for_sampling

    return open_for_sampling(str(Path(base).resolve()), device="cpu", dtype="float32")


def sets(n_rows):
    from whorl.attacks.erase import sets_of

    return sets_of("docstrings", 0, n_rows, "mismatched")


def run_ours(base, n_rows):
    from whorl.erasure.phases import ERASE, encode
    from whorl.tuning.rows import Encoder
    from whorl.tuning.train import tune, with_lora

    model, rows = opened(base), sets(n_rows).erase
    encoded = encode(Encoder(model), rows, "", "all")
    adapted = with_lora(model.model, ERASE)
    start = time.perf_counter()
    tuned = tune(adapted, encoded, ERASE)
    return {
        "seconds": time.perf_counter() - start,
        "updates": tuned.n_updates,
        "loss": statistics.mean(tuned.losses[-10:]),
    }


def run_script(base, n_rows):
    """What a user would write: tokenize with padding, DataCollatorForLanguageModeling, Trainer."""
    import tempfile

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    torch.set_num_threads(1)
    model, rows = opened(base), sets(n_rows).erase
    tokenizer = model.tokenizer
    # a padding token of its own: with the end token as padding the collator would mask nothing else here either
    length = min(512, model.model.config.max_position_embeddings)
    texts = [f"{row.question}{row.answer}" for row in rows]
    data = [
        {"input_ids": ids, "attention_mask": mask}
        for ids, mask in zip(
            *tokenizer(texts, padding="max_length", truncation=True, max_length=length).values(), strict=False
        )
    ]
    torch.manual_seed(0)
    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=8,
        num_train_epochs=5,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        max_grad_norm=0.5,
        weight_decay=0.0,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(get_peft_model(model.model, config), arguments, data_collator=collator, train_dataset=data)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": seconds, "updates": trainer.state.global_step, "loss": float(losses[-1])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=str(BASE))
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--role", choices=("ours", "script"))
    given = parser.parse_args()
    if given.role:
        found = {"ours": run_ours, "script": run_script}[given.role](given.base, given.rows)
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    rows = {"ours": [], "script": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(given.repeats):
        for role, found in rows.items():
            command = [sys.executable, __file__, "--base", given.base, "--rows", str(given.rows), "--role", role]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(role, found[-1], flush=True)
    ours, script = (statistics.median(f["seconds"] for f in rows[role]) for role in ("ours", "script"))
    print(f"ours {ours:.1f} s, peft + Trainer script {script:.1f} s: {script / ours:.2f}x")


if __name__ == "__main__":
    main()
