"""Transcripts for tests: one that fills every field, sets of plain ones, and a Hypothesis strategy for any."""

from hypothesis import strategies as st

from whorl.transcripts.record import (
    PROVIDER_DEFAULT,
    UNKNOWN_DECODING,
    Decoding,
    Message,
    ModelId,
    Prompt,
    Template,
    Transcript,
)

FULL = Transcript(
    model=ModelId("org/modell-ü", "c" * 40, "BF16", "served-name fp_1"),
    prompt=Prompt((Message("system", "Be short."), Message("user", "Wie geht's?\n")), "chat", "document 7"),
    template=Template("chat", "d" * 64, "Be short."),
    decoding=Decoding(temperature=0.7, top_p=PROVIDER_DEFAULT, stop=("\n\n", "END")),
    response=" Gut,\tdanke! \u2028 \ud83d\ude00 \\u0041 \x00",
    sample_index=3,
    stream="control-1",
    finish="length",
    backend={
        "name": "http",
        "version": "1",
        "endpoint": {"kind": "chat", "batch": 7},
        "load": 0.5,
        "quantisation": None,
    },
    prompt_token_ids=(1, 2, 3),
    tokenizer_digest="e" * 64,
    response_token_ids=(5, 6),
    logprobs=(-0.25, None),
    logprobs_kind="raw",
    top_logprobs=({"a": -0.25, " b": -1.5}, {"c": None}),
    sampler_seed=2**62,
    time="2026-01-02T03:04:05.678Z",
    latency_s=1.25,
)


def plain(models=("a", "b"), n_prompts=20, n_draws=1, **changed):
    """Records of models that all answered the same prompts."""
    values = {"template": Template(), "decoding": Decoding(), **changed}
    return [
        Transcript(model=ModelId(ref), prompt=prompt, response=f"{ref} says {i} {k}", sample_index=k, **values)
        for ref in models
        for i, prompt in enumerate(prompts(n_prompts))
        for k in range(n_draws)
    ]


def prompts(n):
    return [Prompt(f"{i}: what is the number {i}?", "test") for i in range(n)]


texts = st.text(max_size=30)
names = st.text(min_size=1, max_size=10)
reals = st.floats(allow_nan=False, allow_infinity=False)
logs = st.none() | reals
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | reals | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["k", "x y", "ü"]), inner, max_size=3),
    max_leaves=6,
)


def _setting(strategy):
    return st.sampled_from([None, PROVIDER_DEFAULT]) | strategy


decodings = st.just(UNKNOWN_DECODING) | st.builds(
    Decoding,
    temperature=_setting(st.floats(0, 5) | st.integers(0, 2)),
    top_p=_setting(st.floats(0.01, 1)),
    top_k=_setting(st.integers(0, 99)),
    max_new_tokens=_setting(st.integers(1, 99)),
    stop=st.lists(names, max_size=2).map(tuple),
    greedy=_setting(st.booleans()),
)
turns = st.lists(st.builds(Message, names, texts), min_size=1, max_size=3).map(tuple)


@st.composite
def transcripts(draw):
    n = draw(st.integers(0, 4))
    token_ids = st.none() | st.lists(st.integers(0, 2**40), min_size=n, max_size=n).map(tuple)
    error = draw(st.none() | names)
    return Transcript(
        model=draw(st.builds(ModelId, names, st.none() | names, st.none() | names, st.none() | names)),
        prompt=Prompt(draw(texts | turns), draw(names), draw(st.none() | names)),
        template=Template(draw(st.sampled_from(["raw", "chat"])), draw(st.none() | names), draw(st.none() | texts)),
        decoding=draw(decodings),
        response=draw(texts),
        sample_index=draw(st.integers(0, 99)),
        stream=draw(names),
        finish=draw(st.sampled_from(["stop", "length", "filter", "error"])),
        backend=draw(st.dictionaries(st.sampled_from(["name", "version"]), json_values, max_size=2)),
        prompt_token_ids=draw(token_ids),
        response_token_ids=draw(token_ids),
        logprobs=draw(st.none() | st.lists(logs, min_size=n, max_size=n).map(tuple)),
        logprobs_kind=draw(st.sampled_from([None, "raw", "processed", "unknown"])),
        top_logprobs=draw(
            st.none() | st.lists(st.dictionaries(texts, logs, max_size=2), min_size=n, max_size=n).map(tuple)
        ),
        sampler_seed=draw(st.none() | st.integers(0, 2**63 - 1)),
        time=draw(st.sampled_from([None, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05.5+00:00"])),
        latency_s=draw(st.none() | st.floats(0, 1e6)),
        error=error,
    )
