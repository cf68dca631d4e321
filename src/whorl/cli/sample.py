"""`whorl sample`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whorl.cli import exit_codes
from whorl.cli.options import JsonOption, OfflineOption, QuietOption
from whorl.cli.sink import Sink
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    from whorl.samplers.sample import SamplePlan, SampleSummary
    from whorl.samplers.seam import Sampler

ASK_ABOVE = 1_000  # requests to a server without a budget (ours)


def sample(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder, org/name@revision or base+adapter.")
    ] = None,
    prompts: Annotated[
        str,
        typer.Option("--prompts", help="web50, uncond, words, genes, short, chat; or a .txt or .jsonl file."),
    ] = "web50",
    n: Annotated[int | None, typer.Option("--n", help="Prompts. Default: all of the set.")] = None,
    rows: Annotated[Path | None, typer.Option("--rows", help="chat: file of conversations.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Draws of each prompt.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Transcript set; goes on where it stopped.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Default 1.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Share of probability kept. Default 1.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Tokens kept; 0 keeps all. Default 0.")] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Least share of the top probability. Default 0.")
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option("--repetition-penalty", help="Default 1: none.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")] = 128,
    min_new_tokens: Annotated[int | None, typer.Option("--min-new-tokens", help="Shortest answer. Default 0.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; repeat.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--raw", help="Chat template or not. Default: if there is one.")
    ] = None,
    stream: Annotated[str, typer.Option("--stream", help="Separates controls of the sampler's seed.")] = "main",
    coupled: Annotated[
        bool, typer.Option("--coupled", help="Same random numbers for all models (paired designs).")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Base seed of all draws.")] = 0,
    logprobs: Annotated[
        int | None, typer.Option("--top-logprobs", help="Keep so many log-probabilities a token.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers drawn side by side.")] = 64,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16, or auto: as stored.")] = "float32",
    engine: Annotated[str, typer.Option("--engine", help="transformers or vllm.")] = "transformers",
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="Address of an OpenAI-compatible server, such as https://host/v1.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--model", help="Name of the model at the server, or of imported answers.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--endpoint-kind", help="chat or completion.")] = None,
    key_env: Annotated[str | None, typer.Option("--key-env", help="Environment variable that holds the key.")] = None,
    max_requests: Annotated[int | None, typer.Option("--max-requests", help="Budget.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Budget, prompts and answers.")] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", help="Budget; needs both prices.")] = None,
    price_in: Annotated[float | None, typer.Option("--price-in", help="Of a million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", help="Of a million answer tokens.")] = None,
    rpm: Annotated[float | None, typer.Option("--rpm", help="Requests a minute at most.")] = None,
    tpm: Annotated[float | None, typer.Option("--tpm", help="Tokens a minute at most.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Requests at a time.")] = 4,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Answers others collected: .jsonl, .json, .csv or .parquet.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="--import: field=column, such as response=text; repeat.")
    ] = None,
    export: Annotated[Path | None, typer.Option("--export", help="Also write the whole set as Parquet.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache of answers.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Draw anew what the cache holds.")] = False,
    offline: OfflineOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before many requests.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """What does it say? Asks a model every prompt and keeps the answers; the same command goes on where it stopped.

    \b
    whorl sample ./model --prompts web50 --n 100 --out ./answers
    whorl sample --endpoint https://host/v1 --model name --endpoint-kind chat --key-env KEY --out ./answers
    whorl sample --import collected.csv --column prompt=question --column response=text --model them --out ./answers
    """
    sink = Sink(as_json=as_json, quiet=quiet)
    if out is None:
        raise UsageError("Name the folder of the transcript set with --out.")
    sources = {"MODEL": model, "--endpoint": endpoint, "--import": import_}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) > 1 or (not given and export is None):
        found = " and ".join(given) or "none"
        raise UsageError(f"Give one of MODEL, --endpoint and --import; given: {found}.")
    if import_ is not None:
        if dry_run:
            raise UsageError("An import has no plan to show: leave out --dry-run.")
        _import(sink, import_, column, name, out)
    elif given:
        decoding = _decoding(
            endpoint is not None,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            stop=tuple(stop or ()),
            greedy=greedy,
        )
        if endpoint is not None:
            sampler = _endpoint(
                endpoint, name, kind, chat, None if offline else key_env, (rpm, tpm, concurrency),
                (max_requests, max_tokens, max_cost, price_in, price_out), system, logprobs,
            )  # fmt: skip
        else:
            with sink.progress() as progress:
                sampler = _local(
                    engine, str(model), device=device, dtype=dtype, batch_size=batch_size, system=system, chat=chat,
                    offline=offline, top_logprobs=logprobs or 0, progress=progress,
                )  # fmt: skip
        for note in getattr(sampler, "notes", ()):
            sink.hint(f"note: {note}")
        limited = (max_requests, max_tokens, max_cost) != (None, None, None)
        source = {} if rows is None else {"rows": rows}
        if prompts == "web32t":
            source["tokenizer"] = _tokenizer_folder(model)
        _sample(
            sink, sampler, (prompts, n, source), out,
            {"n_samples": samples, "decoding": decoding, "randomness": _randomness(seed, stream, coupled)},
            cached=not no_cache, refresh=refresh, offline=offline, dry_run=dry_run, yes=yes or limited,
        )  # fmt: skip
    if export is not None and not dry_run:
        _export(sink, out, export, alone=not given)


def _tokenizer_folder(model: str | None) -> Path:
    """Where the tokenizer that cuts the prompts lies."""
    if model is None or not (Path(model) / "tokenizer.json").is_file():
        raise UsageError(
            "Prompts cut in tokens (web32t) need a local model folder with a tokenizer.json; web50 does not."
        )
    return Path(model)


# -- who answers -----------------------------------------------------------------------------------------------------


def _local(engine: str, model: str, **options: Any) -> "Sampler":
    if engine == "transformers":
        from whorl.samplers.local import open_local

        return open_local(model, **options)
    if engine == "vllm":
        from whorl.samplers.vllm import open_vllm

        del options["device"], options["batch_size"]
        return open_vllm(model, **options)
    raise UsageError(f"Unknown engine '{safe_name(engine, 40)}'; expected transformers or vllm.")


def _endpoint(
    url: str,
    name: str | None,
    kind: str | None,
    chat: bool | None,
    key_env: str | None,
    pace: tuple[float | None, float | None, int],
    budget: tuple[int | None, int | None, float | None, float | None, float | None],
    system: str | None,
    logprobs: int | None,
) -> "Sampler":
    from whorl.samplers.http import open_endpoint
    from whorl.samplers.limits import Budget, Limits

    if name is None or (kind is None and chat is None):
        raise UsageError("An endpoint needs --model NAME and --endpoint-kind chat or completion.")
    kind = kind or ("chat" if chat else "completion")
    if kind not in {"chat", "completion"} or (chat is not None and chat != (kind == "chat")):
        raise UsageError(f"--endpoint-kind is '{safe_name(kind, 40)}'; expected chat (--chat) or completion (--raw).")
    rpm, tpm, concurrency = pace
    return open_endpoint(
        url,
        name,
        kind="chat" if kind == "chat" else "completion",
        key_env=key_env,
        limits=Limits(concurrency, rpm, tpm),
        budget=Budget(*budget),
        system=system,
        logprobs=logprobs,
    )


def _decoding(remote: bool, **given: Any) -> Any:
    """Settings that were not given are the defaults of whorl on this machine, and the provider's at a server."""
    from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding

    values = {key: value for key, value in given.items() if value is not None}
    missing = given.keys() - values.keys()
    return Decoding(**(values | dict.fromkeys(missing, PROVIDER_DEFAULT) if remote else values))


def _randomness(seed: int, stream: str, coupled: bool) -> Any:
    from whorl.samplers.seam import Randomness

    return Randomness(seed, stream, coupled)


# -- what is done ----------------------------------------------------------------------------------------------------


def _sample(
    sink: Sink,
    sampler: "Sampler",
    asked: tuple[str, int | None, dict[str, Path]],
    out: Path,
    settings: dict[str, Any],
    *,
    cached: bool,
    refresh: bool,
    offline: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    from contextlib import ExitStack

    from whorl.samplers.sample import plan
    from whorl.samplers.sample import sample as ask
    from whorl.transcripts.cache import Cache
    from whorl.transcripts.prompts import prompt_set

    name, n, source = asked
    prompts = prompt_set(name, n, **source)
    with ExitStack() as stack:
        cache = stack.enter_context(Cache()) if cached else None
        options = {"out": out, "cache": cache, "refresh": refresh, **settings}
        found = plan(sampler, prompts, **options)
        if dry_run:
            _show_plan(sink, found)
            return
        sink.hint(_plan_text(found))
        if found.costs is not None and not offline:
            _agree(found, yes=yes)
        with sink.progress() as progress:
            summary = ask(sampler, prompts, offline=offline, progress=progress, **options)
    _show(sink, summary)
    if summary.failed:
        raise typer.Exit(exit_codes.UNDECIDED)


def _agree(found: "SamplePlan", *, yes: bool) -> None:
    """Many requests without a budget are confirmed."""
    if yes or found.new <= ASK_ABOVE:
        return
    question = f"{found.new} requests without a budget"
    if not sys.stdin.isatty():
        raise UsageError(f"{question}: give --max-requests, --max-tokens or --max-cost, or --yes.")
    if not typer.confirm(f"{question}. Go on?", err=True):
        raise typer.Exit(exit_codes.USAGE)


def _import(sink: Sink, path: Path, columns: list[str] | None, name: str | None, out: Path) -> None:
    from whorl.samplers.sample import keep
    from whorl.transcripts.importing import import_file

    pairs = dict(pair.partition("=")[::2] for pair in columns or ())
    if not all(pairs.values()):
        raise UsageError("--column is field=column, such as response=text.")
    found = import_file(path, {"prompt": "prompt", "response": "response"} | pairs, name or path.stem)
    n_new = keep(found, out)
    if sink.as_json:
        sink.record({"path": str(out), "imported": n_new, "kept": len(found) - n_new})
    else:
        sink.line(str(out))
        if not sink.quiet:
            sink.line(f"{n_new} answers imported, {len(found) - n_new} were there")


def _export(sink: Sink, out: Path, path: Path, *, alone: bool) -> None:
    from whorl.transcripts.parquet import write_parquet
    from whorl.transcripts.store import open_set

    with open_set(out) as found:
        n_rows = write_parquet(found.records(), path)
    if not alone:
        sink.hint(f"written: {path}, {n_rows} rows")
    elif sink.as_json:
        sink.record({"path": str(path), "rows": n_rows})
    else:
        sink.line(str(path) if sink.quiet else f"{path}: {n_rows} rows")


# -- what is shown ---------------------------------------------------------------------------------------------------


def _plan_text(found: "SamplePlan") -> str:
    longest = "" if found.new_tokens is None else f", at most {found.new_tokens:,} new tokens"
    text = (
        f"{safe_name(found.model.ref)}: {found.n_draws:,} answers to {found.n_prompts:,} prompts; {found.kept:,} in the set, "
        f"{found.cached:,} in the cache, {found.new:,} to draw (about {found.prompt_tokens:,} prompt tokens{longest})"
    )
    cost = (found.costs or {}).get("cost_most")
    return text if cost is None else f"{text}, at most {cost:.4g} in money"


def _show_plan(sink: Sink, found: "SamplePlan") -> None:
    if sink.as_json:
        sink.record(found.to_dict())
    else:
        sink.line(_plan_text(found))


def _show(sink: Sink, summary: "SampleSummary") -> None:
    if sink.as_json:
        sink.record(summary.to_dict())
        return
    sink.line(str(summary.path))
    if summary.failed:
        sink.hint(f"{summary.failed} draws failed; the same command tries them again")
    if not sink.quiet:
        speed = summary.tokens_per_s
        counts = (summary.n_prompts, summary.new, summary.from_cache, summary.kept, summary.failed)
        row = (safe_name(summary.model.ref), *map(str, counts), "–" if speed is None else f"{speed:,.0f}")
        sink.table("", ("model", "prompts", "new", "from cache", "kept", "failed", "tokens/s"), [row])
