"""Training the baseline of the natural-fingerprint lab (0.98M parameters, batches of 32 x 128) against transformers' Trainer.

    python benchmarks/training.py
    python benchmarks/training.py --steps 8 --roles trainer ours

Every row is a run of its own in fresh processes: the same initial weights, the same batches in the same order, AdamW as
Trainer sets it by default (betas 0.9 and 0.999, no decay, clipping at 1, rate falling linearly), peak rate 3e-3. Tokens
per second are those after the first steps, so that neither imports nor compilation count. "Trainer" and "plain loop" use
all cores for one model; "ours" trains a model a core at the same time, as `whorl lab natural-fingerprints` does, and its
tokens are added up. Memory is the peak above that of the interpreter with everything imported, all processes added up; on
a GPU it is the peak that torch allocated there. The bound is the time of the matrix products alone.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

PEAK_RATE = 3e-3
BATCH = (32, 128)
STACKED = 4
WARM_STEPS = 4


def size():
    from whorl.lab.natural.config import Experiment, size_of

    settings = Experiment()
    return size_of(settings, settings.widths[0])


def batches(n_steps, seed=0):
    """Ids of a skewed unigram distribution, so that there is something to learn."""
    uniform = np.random.default_rng(seed).random((n_steps, *BATCH))
    return (uniform**3 * 1024).astype(np.int64)


class Clock:
    """Tokens per second after the first steps; all processes begin to count together."""

    def __init__(self, barrier=None):
        self.barrier, self.n_done, self.start, self.stop = barrier, 0, 0.0, 0.0

    def tick(self):
        self.n_done += 1
        if self.n_done == WARM_STEPS:
            if self.barrier is not None:
                self.barrier.wait()
            self.start = time.perf_counter()
        self.stop = time.perf_counter()

    def tokens_per_s(self, n_models=1):
        return (self.n_done - WARM_STEPS) * n_models * BATCH[0] * BATCH[1] / (self.stop - self.start)


def fresh_model():
    import torch

    from whorl.lab._llama import new_model

    torch.manual_seed(0)
    return new_model(size())


def run_trainer(n_steps, device):
    """`Trainer` with its defaults; only the order of the data is fixed and nothing is written or reported."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock, losses = Clock(), []

    class Ticking(TrainerCallback):
        def on_step_end(self, *_, **__):
            clock.tick()

    class Watched(Trainer):
        def compute_loss(self, *arguments, **named):
            loss = super().compute_loss(*arguments, **named)
            losses.append(loss.detach())
            return loss

    rows = torch.from_numpy(batches(n_steps).reshape(-1, BATCH[1]))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=n_steps,
            per_device_train_batch_size=BATCH[0],
            learning_rate=PEAK_RATE,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device == "cpu",
        )
        data = [{"input_ids": row, "labels": row} for row in rows]
        Watched(fresh_model(), arguments, train_dataset=data, callbacks=[Ticking()]).train()
    return clock.tokens_per_s(), [loss.item() for loss in losses]


def run_plain(n_steps, device):
    """The loop everybody writes, as in `whorl.lab._loop`."""
    import torch

    model, clock, losses = fresh_model().to(device).train(), Clock(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.0)
    for step, rows in enumerate(torch.from_numpy(batches(n_steps)).to(device)):
        logits = model(input_ids=rows, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = PEAK_RATE * (1 - step / n_steps)
        optimiser.step()
        losses.append(loss.item())
        clock.tick()
    return clock.tokens_per_s(), losses


def stacked(n_steps, n_models=1, *, device="cpu", compiled=False, barrier=None):
    from whorl.lab.stacked import Training, train_stack

    clock = Clock(barrier)
    training = Training(
        learning_rate=PEAK_RATE, weight_decay=0.0, beta2=0.999, schedule="linear", warmup_share=0.0, clip_norm=1.0
    )
    trained = train_stack(
        size(),
        [training] * n_models,
        [batches(n_steps)] * n_models,
        device=device,
        compiled=compiled,
        progress=lambda *_: clock.tick(),
    )
    return clock.tokens_per_s(n_models), list(trained[0].losses)


def worker(answers, barrier, n_steps, compiled):
    """One model on one core."""
    from whorl.lab._jobs import one_thread

    one_thread()
    imported()
    idle = peak_mb()
    tokens_per_s, losses = stacked(n_steps, compiled=compiled, barrier=barrier)
    answers.put((tokens_per_s, losses, peak_mb() - idle))


def a_model_a_core(n_steps, compiled):
    from whorl._threads import n_cores

    found = in_processes(n_cores(), worker, n_steps, compiled)
    return sum(f[0] for f in found), found[0][1], sum(f[2] for f in found)


def in_processes(n, work, *arguments):
    context = multiprocessing.get_context("spawn")
    answers, barrier = context.Queue(), context.Barrier(n)
    running = [context.Process(target=work, args=(answers, barrier, *arguments), daemon=True) for _ in range(n)]
    for process in running:
        process.start()
    found = [answers.get(timeout=1800) for _ in running]
    for process in running:
        process.join()
    return found


def products():
    """(n, inner, m) of every matrix product of one step: forward, and both of the way back."""
    s, n = size(), BATCH[0] * BATCH[1]
    qkv = (s.n_heads + 2 * s.n_kv_heads) * s.d_head
    layer = [
        (n, s.d_model, qkv),
        (n, s.n_heads * s.d_head, s.d_model),
        (n, s.d_model, 2 * s.d_mlp),
        (n, s.d_mlp, s.d_model),
    ]
    forward = layer * s.n_layers + [(BATCH[0] * (BATCH[1] - 1), s.d_model, s.n_vocab)]
    return [shape for a, b, c in forward for shape in ((a, b, c), (a, c, b), (c, a, b))]


def attention_flops():
    """Of one step: causal scores and mixtures, forward and twice that back."""
    s = size()
    return 3 * 2 * s.n_layers * BATCH[0] * BATCH[1] ** 2 * s.n_heads * s.d_head


def bound_worker(answers, barrier):
    from whorl.lab._jobs import one_thread

    one_thread()
    import torch

    answers.put(product_seconds("cpu", torch.zeros, barrier.wait))


def product_seconds(device, zeros, begin):
    """Seconds of the products of one step, the best of several rounds."""
    import torch

    pairs = [(zeros(a, b, device=device) + 1, zeros(b, c, device=device) + 1) for a, b, c in products()]
    seconds = []
    begin()
    for _ in range(6):
        start = time.perf_counter()
        for left, right in pairs:
            left @ right
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bound(device):
    """Tokens per second if a step were its matrix products and its attention at their speed, and nothing else."""
    import torch

    from whorl._threads import n_cores

    gemm = sum(2 * a * b * c for a, b, c in products())
    if device == "cpu":
        gflops = sum(gemm / s / 1e9 for s in in_processes(n_cores(), bound_worker))
    else:
        gflops = gemm / product_seconds(device, torch.zeros, lambda: None) / 1e9
    per_token = (gemm + attention_flops()) / (BATCH[0] * BATCH[1])
    return {"tokens_per_s": gflops * 1e9 / per_token, "gflops": gflops, "mflop_per_token": per_token / 1e6}


ROLES = {
    "trainer": ("transformers Trainer, all cores", "cpu"),
    "plain": ("plain loop, all cores", "cpu"),
    "ours": ("ours, a model a core", "cpu"),
    "ours-compiled": ("ours compiled, a model a core", "cpu"),
    "bound": ("bound: matrix products alone", "cpu"),
    "trainer-gpu": ("transformers Trainer, GPU", "cuda"),
    "plain-gpu": ("plain loop, GPU", "cuda"),
    "ours-gpu": (f"ours, {STACKED} stacked, GPU", "cuda"),
    "ours-gpu-compiled": (f"ours compiled, {STACKED} stacked, GPU", "cuda"),
    "bound-gpu": ("bound: matrix products alone, GPU", "cuda"),
}


def imported():
    import torch  # noqa: F401 - imports are not part of what is measured
    from transformers import LlamaForCausalLM, Trainer  # noqa: F401

    import whorl.lab.stacked  # noqa: F401


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(role, n_steps):
    """Run one role in a process of its own and print what was found as JSON."""
    device = ROLES[role][1]
    if role.startswith("bound"):
        print(json.dumps(bound(device)))
        return
    if role in {"ours", "ours-compiled"}:
        speed, losses, megabytes = a_model_a_core(n_steps, role == "ours-compiled")
    else:
        imported()
        idle = peak_mb()
        if role.startswith("ours-gpu"):
            speed, losses = stacked(n_steps, STACKED, device=device, compiled=role.endswith("compiled"))
        else:
            speed, losses = (run_trainer if role.startswith("trainer") else run_plain)(n_steps, device)
        megabytes = peak_mb() - idle if device == "cpu" else gpu_megabytes()
    print(json.dumps({"tokens_per_s": speed, "losses": losses, "peak_mb": megabytes}))


def gpu_megabytes():
    import torch

    return torch.cuda.max_memory_allocated() / 1e6


def measure(role, n_steps):
    command = [sys.executable, "-W", "ignore", __file__, "--role", role, "--steps", str(n_steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
    return json.loads(done.stdout.splitlines()[-1])


def table(found):
    """The Markdown table; ratios and curves are against the Trainer of the same device."""
    yield "| what | tokens/s | against Trainer | share of the bound | largest relative difference of losses | peak memory, MB |"
    yield "|---|---|---|---|---|---|"
    for role, row in found.items():
        name, device = ROLES[role]
        trainer = found.get("trainer" if device == "cpu" else "trainer-gpu")
        limit = found.get("bound" if device == "cpu" else "bound-gpu")
        ratio = f"{row['tokens_per_s'] / trainer['tokens_per_s']:.2f}" if trainer else "-"
        share = f"{row['tokens_per_s'] / limit['tokens_per_s']:.0%}" if limit else "-"
        known = trainer and "losses" in row
        apart = f"{difference(row['losses'], trainer['losses']):.1e}" if known else "-"
        memory = f"{row['peak_mb']:.0f}" if "peak_mb" in row else "-"
        yield f"| {name} | {row['tokens_per_s']:,.0f} | {ratio} | {share} | {apart} | {memory} |"


def difference(losses, others):
    return float(np.abs(np.subtract(losses, others) / others).max())


def facts(found, n_steps):
    for role in ("bound", "bound-gpu"):
        if role in found:
            row = found[role]
            yield f"{ROLES[role][0]}: {row['gflops']:.1f} GFLOP/s at {row['mflop_per_token']:.2f} MFLOP per token."
    curves = {role: row["losses"] for role, row in found.items() if "losses" in row}
    if curves:
        shown = "; ".join(f"{role} {curve[0]:.4f} -> {curve[-1]:.4f}" for role, curve in curves.items())
        yield f"Loss over {n_steps} steps: {shown}."


def chosen(wanted):
    import torch

    return wanted or [role for role, (_, device) in ROLES.items() if device == "cpu" or torch.cuda.is_available()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help=f"more than {WARM_STEPS}")
    parser.add_argument(
        "--roles", nargs="+", choices=ROLES, default=None, help="default: all that this machine can run"
    )
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.steps <= WARM_STEPS:
        parser.error(f"--steps must be more than {WARM_STEPS}")
    if arguments.role:
        child(arguments.role, arguments.steps)
        return
    found = {role: measure(role, arguments.steps) for role in chosen(arguments.roles)}
    print(*table(found), "", *facts(found, arguments.steps), sep="\n")


if __name__ == "__main__":
    main()
