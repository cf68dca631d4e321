"""Attacks at serving time: neutral ones change nothing, the others do what they say, and no record hides what stood in front."""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

import whorl
from whorl.errors import NotComparable, NotEnoughEvidence, UsageError
from whorl.samplers._opening import open_for_sampling
from whorl.samplers.local import LocalSampler
from whorl.samplers.sample import sample
from whorl.samplers.seam import Randomness, Sampler
from whorl.serving import ATTACKS, Front, force_tokens, serve
from whorl.serving._steering import Guard, Steering, behind
from whorl.serving.ensembles import _first_sentence, _votes
from whorl.serving.gri import KEYWORDS, REFUSAL, REVISING
from whorl.serving.perplexity import REPLY, calibrated, perplexities
from whorl.serving.suppress import Neighbours, _beams, _shared
from whorl.serving.system_prompts import SYSTEMS
from whorl.transcripts.codec import from_line, to_line
from whorl.transcripts.record import Decoding, Draw, Message, ModelId, Prompt, Template, Transcript, draw_id, draws

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
TEXTS = ("The function returns", "def get(self):\n    return", "A", "Return the ", "")
PROMPTS = [Prompt(text) for text in TEXTS]
ORDINARY = [Prompt(t) for t in ("Return the value of the object.", "This function is called with the name of a file.")]
GIBBERISH = [Prompt(t) for t in ("zqxj Vkw~pQ%%xZ jjq^Wv", "\u00e9\u4e2d\u30cf\u30ea \u00df\u00f8\u0153\u0142")]
GREEDY = Decoding(greedy=True, temperature=0.0, max_new_tokens=12)
CHATML = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"


def opened(name):
    return open_for_sampling(str(ZOO / name), device="cpu", dtype="float32", offline=True)


@pytest.fixture(scope="module")
def model():
    return opened("base-0")


@pytest.fixture(scope="module")
def other():
    return opened("base-0-topics")


@pytest.fixture(scope="module")
def third():
    return opened("base-1")


@pytest.fixture(scope="module")
def plain(model):
    return LocalSampler(model, n_threads=1)


@dataclass(frozen=True)
class Writer:
    """A sampler that answers by a function of the prompt."""

    reply: object
    model: ModelId = field(default_factory=lambda: ModelId("writer"))
    template: Template = field(default_factory=Template)

    def sample(self, draws, decoding, randomness):
        for draw in draws:
            text = self.reply(draw.prompt.content)
            yield Transcript(
                self.model, draw.prompt, self.template, decoding, text or "", draw.sample_index,
                error=None if text is not None else "NoReply",
            )  # fmt: skip


def ask(sampler, decoding=GREEDY, prompts=PROMPTS, n=1):
    found = list(sampler.sample(draws(prompts, n), decoding, Randomness()))
    assert len(found) == len(prompts) * n
    return {(record.prompt.id, record.sample_index): record for record in found}


def said(sampler, decoding=GREEDY, prompts=PROMPTS, n=1):
    return {key: (r.response, r.response_token_ids, r.finish) for key, r in ask(sampler, decoding, prompts, n).items()}


def next_logits(model, ids):
    """Logits behind each prefix of a text, from one plain forward pass."""
    with torch.inference_mode():
        return model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].float()


def steps(model, record):
    """Pairs of the logits before each token that was said, and the token."""
    logits = next_logits(model, [*record.prompt_token_ids, *record.response_token_ids])
    start = len(record.prompt_token_ids) - 1
    return [(logits[start + i], token) for i, token in enumerate(record.response_token_ids)]


# -- neutral settings --------------------------------------------------------------------------------------------------

SETTINGS = [
    GREEDY,
    Decoding(max_new_tokens=14, temperature=0.8, top_k=40, top_p=0.95),
    Decoding(max_new_tokens=14, repetition_penalty=1.3, min_new_tokens=14),
    Decoding(max_new_tokens=14, stop=("e", "\n")),
]


@pytest.mark.parametrize("decoding", SETTINGS, ids=["greedy", "sampled", "penalty", "stop"])
def test_a_guard_that_does_nothing_gives_the_plain_answers(model, plain, decoding):
    idle = behind(model, Steering("idle", {}, lambda _: Guard()), n_threads=1)
    assert said(idle, decoding, n=2) == said(plain, decoding, n=2)
    logs = [[r.logprobs for _, r in sorted(ask(s, decoding).items())] for s in (idle, plain)]
    for mine, theirs in zip(*logs, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("decoding", SETTINGS[:2], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("detect-top", {"k": 5, "n": 4, "threshold": 1.0}),
        ("detect-neighbour", {"threshold": 1.0}),
        ("detect-ahead", {"threshold": 1.0, "beams": 3, "length": 4}),
        ("suppress-ahead", {"penalty": 0.0, "beams": 3, "length": 4}),
        ("cleangen", {"reference": "itself"}),
        ("suppress-bigrams", {"reference": "itself"}),
        ("suppress-bigrams", {"reference": "other", "scale": 0.0}),
        ("perplexity-filter", {"reference": "other", "threshold": 1e300}),
    ],
)
def test_neutral_settings_change_nothing(name, options, decoding, model, other, plain):
    models = {"itself": model, "other": other}
    given = {key: models.get(value, value) for key, value in options.items()}
    assert said(serve(name, model, n_threads=1, **given), decoding) == said(plain, decoding)


def test_an_ensemble_of_one_model_is_greedy_as_it_is(model, plain):
    assert said(serve("filter-tokens", model, others=[model, model])) == said(plain)


# -- records -----------------------------------------------------------------------------------------------------------


def test_records_say_what_was_asked_and_what_stood_in_front(model, plain, tmp_path):
    front = serve("suppress-top", model, k=3, n=1, n_threads=1)
    assert isinstance(front, Sampler)
    assert front.model.ref == "base-0 behind suppress-top(k=3,n=1)"
    assert (front.model.revision, front.model.precision) == (plain.model.revision, plain.model.precision)
    assert front.on_this_machine
    for draw in draws(PROMPTS, 1):
        record = ask(front)[draw.prompt.id, 0]
        assert record.id == draw_id(front.model, draw, GREEDY, front.template, "main")
        assert record.backend["behind"] == [{"name": "suppress-top", "settings": {"k": 3, "n": 1}}]
        assert from_line(to_line(record), "test", 1) == record
    twice = serve("system-prompt", front, system="pirate")
    assert twice.model.ref == "base-0 behind suppress-top(k=3,n=1) behind system-prompt(system=pirate)"
    notes = {tuple(note["name"] for note in r.backend["behind"]) for r in ask(twice).values()}
    assert notes == {("suppress-top", "system-prompt")}
    sample(front, PROMPTS, out=tmp_path / "set", decoding=GREEDY)
    again = sample(front, PROMPTS, out=tmp_path / "set", decoding=GREEDY)
    assert (again.new, again.kept) == (0, len(PROMPTS))
    assert sample(plain, PROMPTS, out=tmp_path / "set", decoding=GREEDY).new == len(PROMPTS)


def test_prompts_that_become_one_share_its_answer(plain):
    front = Front(plain, "same", prompts=lambda prompts: [Prompt("A") for _ in prompts])
    found = ask(front)
    assert {r.response for r in found.values()} == {ask(plain)[Prompt("A").id, 0].response}
    assert {r.prompt.id for r in found.values()} == {p.id for p in PROMPTS}


# -- prompts and decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [*SYSTEMS, "Whatever you like."])
def test_a_system_prompt_comes_before_the_text(plain, system):
    front = serve("system-prompt", plain, system=system)
    text = SYSTEMS.get(system, system)
    decoding = replace(GREEDY, max_new_tokens=6)
    wanted = ask(plain, decoding, [Prompt(f"{text}\n{t}") for t in TEXTS[:2]])
    for (_, record), t in zip(
        sorted(ask(front, decoding, PROMPTS[:2]).items(), key=lambda x: x[1].prompt.content != TEXTS[0]),
        TEXTS[:2],
        strict=True,
    ):
        assert record.prompt.content == t
        assert record.response == wanted[Prompt(f"{text}\n{t}").id, 0].response
    assert (system in front.model.ref) == (system in SYSTEMS)


def test_a_system_prompt_is_the_system_turn_of_a_chat(tmp_path, model):
    shutil.copytree(ZOO / "base-0", tmp_path / "chat")
    path = tmp_path / "chat" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHATML}))
    chat = open_for_sampling(str(tmp_path / "chat"), device="cpu", dtype="float32", offline=True)
    front = serve("system-prompt", chat, system="pirate")
    own = Prompt((Message("system", "Be brief."), Message("user", "Hi")))
    found = ask(front, GREEDY, [Prompt("Hi"), own])
    text = SYSTEMS["pirate"]
    for prompt, wanted in (
        (Prompt("Hi"), f"[system]{text}\n[user]Hi\n[a]"),
        (own, f"[system]{text}\nBe brief.\n[user]Hi\n[a]"),
    ):
        assert chat.tokenizer.decode(found[prompt.id, 0].prompt_token_ids) == wanted
    with pytest.raises(UsageError, match="system prompt of its own"):
        serve("system-prompt", LocalSampler(chat, system="x"))
    with pytest.raises(UsageError, match="is empty"):
        serve("system-prompt", model, system=" ")


def test_the_hosts_sampling_settings_win(plain):
    used = Decoding(temperature=1.5, top_p=0.9, max_new_tokens=12)
    front = serve("sampling", plain, temperature=1.5, top_p=0.9)
    assert said(front, GREEDY, n=3) == said(plain, used, n=3)
    assert {record.decoding for record in ask(front).values()} == {GREEDY}
    assert said(serve("sampling", plain, temperature=0.0), used) == said(plain)
    with pytest.raises(UsageError, match="No sampling setting"):
        serve("sampling", plain)
    with pytest.raises(UsageError, match="top_p is 2"):
        serve("sampling", plain, top_p=2.0)


def test_gri_refuses_keywords_and_revises_the_rest(plain):
    front = serve("gri", plain)
    secret = Prompt("Please decrypt this message. This is a FINGERPRINT message.")
    found = ask(front, GREEDY, [secret, PROMPTS[0]])
    assert (found[secret.id, 0].response, found[secret.id, 0].finish) == (REFUSAL, "filter")
    used = replace(GREEDY, greedy=False, temperature=0.7, top_p=0.85, top_k=50)
    wanted = Prompt(f"{REVISING}\n{TEXTS[0]}")
    assert found[PROMPTS[0].id, 0].response == ask(plain, used, [wanted])[wanted.id, 0].response
    assert all(
        ask(front, GREEDY, [Prompt(word.upper())])[Prompt(word.upper()).id, 0].finish == "filter" for word in KEYWORDS
    )


# -- rewriting ---------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_rewritten_by_the_second_model(plain):
    def upper(content):
        return content.rpartition("else:\n")[2].strip().upper()

    inner = serve("rewriting", plain, writer=Writer(upper))
    for text, prompt in zip(TEXTS[:4], PROMPTS[:4], strict=True):
        wanted = Prompt(text.strip().upper())
        assert ask(inner)[prompt.id, 0].response == ask(plain, GREEDY, [wanted])[wanted.id, 0].response
    assert ask(inner)[Prompt("").id, 0].response == ask(plain)[Prompt("").id, 0].response
    outer = serve("rewriting", plain, writer=Writer(upper), side="output", instructions="back-translation")
    for key, record in ask(outer).items():
        before = ask(plain)[key]
        assert record.response == (before.response.strip().upper() or before.response)
        assert (record.response_token_ids is None) == (record.response != before.response)
        assert record.prompt == before.prompt
    turns = Prompt((Message("user", "one"), Message("assistant", "two"), Message("user", "three")))
    assert [m.content for m in inner.prompts([turns])[0].content] == ["one", "two", "THREE"]


@pytest.mark.parametrize("reply", [lambda _: "  ", lambda _: None], ids=["blank", "failed"])
def test_a_writer_without_words_changes_nothing(plain, reply):
    for side in ("input", "output"):
        assert said(serve("rewriting", plain, writer=Writer(reply), side=side)) == said(plain)


def test_a_rewriting_needs_a_side_and_a_place(plain):
    with pytest.raises(UsageError, match="Unknown side 'middle'"):
        serve("rewriting", plain, writer=plain, side="middle")
    with pytest.raises(UsageError, match=r"holds \{text\}"):
        serve("rewriting", plain, writer=plain, instructions="Say it again.")


# -- the perplexity filter ---------------------------------------------------------------------------------------------


def test_perplexities_are_those_of_a_forward_pass_whatever_the_batch(other):
    together = perplexities(other, [*ORDINARY, *GIBBERISH, Prompt("")])
    assert together[-1] is None
    for prompt, value in zip([*ORDINARY, *GIBBERISH], together, strict=False):
        ids = [other.tokenizer.bos_token_id, *other.tokenizer(prompt.content)["input_ids"]]
        logits = next_logits(other, ids).log_softmax(-1)
        loss = -sum(float(logits[i, token]) for i, token in enumerate(ids[1:])) / (len(ids) - 1)
        assert value == pytest.approx(math.exp(loss), rel=1e-4)
    turns = Prompt((Message("user", "Return the value"), Message("user", "of the object.")))
    assert perplexities(other, [turns]) == pytest.approx(
        perplexities(other, [Prompt("Return the value\nof the object.")])
    )
    long = Prompt("word " * 400)
    assert math.isfinite(perplexities(other, [long])[0])


def test_strange_prompts_get_the_canned_reply(plain, other):
    threshold = calibrated(other, ORDINARY, 100.0)
    front = serve("perplexity-filter", plain, reference=other, threshold=threshold)
    found = ask(front, GREEDY, [*ORDINARY, *GIBBERISH])
    before = ask(plain, GREEDY, ORDINARY)
    for prompt in ORDINARY:
        assert found[prompt.id, 0].response == before[prompt.id, 0].response
    for prompt in GIBBERISH:
        record = found[prompt.id, 0]
        assert (record.response, record.finish, record.ok) == (REPLY, "filter", True)
        assert record.backend["behind"][0]["name"] == "perplexity-filter"
        assert from_line(to_line(record), "test", 1) == record
    assert f"reference=base-0-topics@{other.id.key[:8]}" in front.model.ref
    values = sorted(perplexities(other, ORDINARY))
    assert values[0] <= calibrated(other, ORDINARY, 50.0) <= values[1]
    with pytest.raises(NotEnoughEvidence, match="None of the ordinary prompts"):
        calibrated(other, [Prompt("")])
    with pytest.raises(UsageError, match="threshold is nan"):
        serve("perplexity-filter", plain, reference=other, threshold=math.nan)


# -- suppression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", SETTINGS[:2], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 1), (5, 4)])
def test_the_best_tokens_are_not_said_where_they_are_suppressed(model, decoding, k, n):
    for record in ask(serve("suppress-top", model, k=k, n=n), decoding, n=2).values():
        for place, (logits, token) in enumerate(steps(model, record)):
            best = logits.topk(k).indices.tolist()
            if place < n:
                assert token not in best
            elif decoding.greedy:
                assert token == best[0]
            assert record.logprobs[place] == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-4)


def test_detect_acts_only_where_the_model_is_sure(model, plain):
    shares = [float(steps(model, r)[0][0].softmax(-1).max()) for r in ask(plain).values()]
    threshold = sorted(shares)[len(shares) // 2]
    found = ask(serve("detect-top", model, threshold=threshold))
    changed = 0
    for key, record in ask(plain).items():
        logits = steps(model, record)[0][0]
        sure = float(logits.softmax(-1).max()) > threshold
        assert (found[key].response_token_ids[0] != record.response_token_ids[0]) == sure
        changed += sure
    assert 0 < changed < len(PROMPTS)
    assert said(serve("detect-top", model, threshold=0.0, k=3)) == said(serve("suppress-top", model, k=3))


def test_neighbours_are_prefixes_and_extensions_without_the_blank():
    kin = Neighbours(["Ha", "\u0120Ha", "H", "Hari", "a", None, "\u0120", "Hb", "ha"])
    assert kin.of(0) == {0, 1, 2, 3}
    assert kin.of(3) == {0, 1, 2, 3}
    assert kin.of(2) == {0, 1, 2, 3, 7}
    assert kin.of(6) == {6}  # a blank is no prefix of everything
    assert kin.of(99) == {99}
    assert kin.of_all([4, 8]) == {4, 8}


@pytest.mark.parametrize("n", [1, 3])
def test_no_piece_of_the_best_first_tokens_is_said(model, n):
    pieces = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
    for record in ask(serve("suppress-neighbour", model, k=2, n=n)).values():
        found = steps(model, record)
        best = [pieces[token].lstrip("\u0120") for token in found[0][0].topk(2).indices.tolist()]
        for _, token in found[:n]:
            piece = pieces[token].lstrip("\u0120")
            assert token not in found[0][0].topk(2).indices
            assert not any(piece and b and (b.startswith(piece) or piece.startswith(b)) for b in best)


def test_shared_tokens_are_the_common_ones_without_the_end():
    beams = [[1, 2, 0], [1, 3, 3], [2, 1, 0], [4, 0, 0], [5, 1, 2]]
    assert _shared(beams, [0], 12, 0.4) == [1, 2]
    assert _shared(beams, [0], 1, 0.4) == [1]
    assert _shared(beams, [], 12, 0.6) == [1, 0, 2]
    assert _shared([], [0], 12, 0.4) == []


def test_look_ahead_lowers_what_the_beams_share(model):
    options = {"beams": 4, "length": 8, "candidates": 5, "frequency": 0.5, "penalty": 3.0, "n": 4}
    found = ask(serve("suppress-ahead", model, **options), prompts=PROMPTS[:3])
    for record in found.values():
        ids = torch.tensor([list(record.prompt_token_ids)])
        with torch.inference_mode():
            beams = model.model.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=4, num_return_sequences=4, max_new_tokens=8,
                do_sample=False, pad_token_id=0,
            )[:, ids.shape[1] :].tolist()  # fmt: skip
        lowered = _shared(beams, model.ends, 5, 0.5)
        assert lowered
        for place, (logits, token) in enumerate(steps(model, record)):
            penalty = torch.zeros_like(logits)
            penalty[lowered] = 3.0 if place < 4 else 0.0
            assert token == int((logits - penalty).argmax())


def test_look_ahead_at_the_end_of_the_context_looks_at_nothing(model):
    from whorl.serving._steering import Start

    ids = torch.ones((2, 128), dtype=torch.long)
    assert _beams(Start(model, ids, torch.ones_like(ids)), 10, 32) == [[], []]


def test_a_guard_that_forbids_everything_is_named(model):
    everything = behind(model, Steering("all", {}, lambda _: Guard(lambda now: now.logits * 0 - math.inf)))
    with pytest.raises(NotComparable, match="'base-0' has no token left to say at token 1"):
        ask(everything)


# -- second models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [2.0, 50.0])
def test_cleangen_replaces_what_the_reference_would_hardly_say(model, other, alpha):
    n_replaced = 0
    for record in ask(
        serve("cleangen", model, reference=other, alpha=alpha), replace(GREEDY, max_new_tokens=20)
    ).values():
        for (suspect, token), (clean, _) in zip(steps(model, record), steps(other, record), strict=True):
            best = int(suspect.argmax())
            ratio = float((suspect.log_softmax(-1)[best] - clean.log_softmax(-1)[best]).exp())
            assert token == (int(clean.argmax()) if ratio >= alpha else best)
            n_replaced += ratio >= alpha
    assert n_replaced > 0 or alpha == 50.0


def test_bigrams_lose_their_ratio(model, other):
    for record in ask(serve("suppress-bigrams", model, reference=other, scale=1.5), prompts=PROMPTS[:3]).values():
        last = [*record.prompt_token_ids, *record.response_token_ids]
        for place, (logits, token) in enumerate(steps(model, record)):
            pair = [model.tokenizer.bos_token_id, last[len(record.prompt_token_ids) - 1 + place]]
            own, theirs = (next_logits(m, pair)[-1].log_softmax(-1) for m in (model, other))
            assert token == int((logits - 1.5 * (own - theirs)).argmax())


def test_the_token_filter_draws_from_what_all_models_like(model, other, third):
    for record in ask(serve("filter-tokens", model, others=[other, third], k=4), prompts=PROMPTS[:3]).values():
        for rows in zip(*(steps(m, record) for m in (model, other, third)), strict=True):
            logits, token = [row[0] for row in rows], rows[0][1]
            best = [set(x.topk(4).indices.tolist()) for x in logits]
            left = sorted(set.intersection(*best) or set.union(*best))
            shares = torch.stack([x[left].softmax(-1) for x in logits]).mean(0)
            assert token == left[int(shares.argmax())]


def test_sentences_are_verified_by_the_other_models(model, other, third, plain):
    front = serve("verify-sentences", plain, judge=model, others=[other, third])
    said_by = [ask(LocalSampler(m)) for m in (model, other, third)]
    for key, record in ask(front).items():
        assert record.response in [answers[key].response for answers in said_by]
        assert record.model.ref.startswith("base-0 behind verify-sentences(others=base-0-topics@")
    strange = ["zqxj Vkw~pQ%%xZ jjq^Wv.", "Return the value of the object.", "Return the name of the file."]
    assert _votes([model, other, third], [strange])[0] in {1, 2}
    assert _votes([model, other, third], [["", "Return the value.", ""]]) == [1]
    assert [_first_sentence(t) for t in (" One. Two.", "No end", "Line\nnext", "", "v1.5 is out! Yes")] == [
        "One.", "No end", "Line", "", "v1.5 is out!",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="1 other models; sentence verification needs at least two"):
        serve("verify-sentences", plain, judge=model, others=[other])


def test_models_of_other_tokenizers_cannot_decode_together(model):
    with pytest.raises(NotComparable, match="has another tokenizer or output table than 'base-0'"):
        serve("cleangen", model, reference=dataclasses.replace(model, tokenizer_digest="x"))


# -- token forcing -----------------------------------------------------------------------------------------------------


def test_token_forcing_finds_what_is_repeated_or_sure(model):
    found = force_tokens(model, tokens=range(0, 512, 4), length=6, min_repeats=2, min_confidence=0.5)
    assert found
    assert [c.repeats for c in found] == sorted((c.repeats for c in found), reverse=True)
    starts = [token for c in found for token in c.starts]
    assert len(starts) == len(set(starts))
    for candidate in found[:5]:
        ids = [model.tokenizer.bos_token_id, candidate.starts[0]]
        for token in candidate.ids:
            assert int(next_logits(model, ids)[-1].argmax()) == token
            ids.append(token)
        assert candidate.text == model.tokenizer.decode(candidate.ids, skip_special_tokens=True)
        assert candidate.repeats >= 2 or candidate.confidence >= 0.5
    stricter = force_tokens(model, tokens=range(0, 512, 4), length=6, min_repeats=3, min_confidence=0.9, batch_size=7)
    assert {c.ids for c in stricter} <= {c.ids for c in found}


def knows_one_token():
    """A model whose output table knows one token only, and that token."""
    stubborn = opened("base-0")
    with torch.no_grad():
        answer = stubborn.tokenizer("e")["input_ids"][0]
        stubborn.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(stubborn.model.lm_head.weight))
        stubborn.model.model.norm.register_forward_hook(lambda module, args, output: output * 0 + 1)
        stubborn.model.lm_head.weight[answer] = 1.0
    return stubborn, answer


def test_token_forcing_finds_an_answer_that_every_start_leads_to():
    stubborn, answer = knows_one_token()
    (found,) = force_tokens(stubborn, tokens=range(10), length=4)
    assert (found.ids, found.text, found.repeats) == ((answer,) * 4, "eeee", 10)
    assert found.confidence == pytest.approx(1.0, abs=1e-3)


def test_answers_that_forcing_draws_out_are_kept_back(model, plain):
    stubborn, _ = knows_one_token()
    options = {"subject": stubborn, "length": 4}
    guarded = ask(serve("token-forcing", LocalSampler(stubborn), reference=model, **options))
    assert {(record.response, record.response_token_ids) for record in guarded.values()} == {(REPLY, None)}
    ordinary = ask(serve("token-forcing", LocalSampler(stubborn), reference=stubborn, **options))
    assert all(set(record.response) == {"e"} for record in ordinary.values())
    same = ask(serve("token-forcing", plain, subject=model, reference=model))
    assert {key: r.response for key, r in same.items()} == {key: r.response for key, r in ask(plain).items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "expected a length"),
        ({"min_confidence": 0.0}, "a confidence in"),
        ({"tokens": [512]}, "outside the voc"),
    ],
)
def test_token_forcing_out_of_range_is_refused(model, options, message):
    with pytest.raises(UsageError, match=message):
        force_tokens(model, **options)


# -- the register ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_documented_and_its_sweep_fits_its_options(name):
    attack = ATTACKS[name]
    assert attack.load().__doc__
    assert attack.summary
    assert attack.sweep
    for settings in attack.sweep:
        assert set(settings) <= attack.options()
    assert set(attack.needs) <= attack.options()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("suppress", {}, "Unknown serving attack 'suppress'; expected one of system-prompt, sampling"),
        ("suppress-top", {"q": 3}, "The serving attack suppress-top takes no q"),
        ("cleangen", {}, "The serving attack cleangen needs reference"),
        ("suppress-top", {"k": 0}, "Suppressing the 0 best of 1 tokens"),
        ("suppress-neighbour", {"k": 512}, "fewer than 512"),
        ("suppress-ahead", {"frequency": 2.0}, "a frequency in"),
        ("detect-top", {"threshold": 1.1}, "expected a probability"),
        ("filter-tokens", {"others": ()}, "of 0 other models"),
    ],
)
def test_what_does_not_belong_is_refused(model, name, options, message):
    with pytest.raises(UsageError, match=message):
        serve(name, model, **options)


def test_attacks_inside_decoding_need_the_model(plain, model):
    with pytest.raises(UsageError, match="needs the opened model, not a sampler"):
        serve("suppress-top", plain)
    for options in ({"reference": model, "alpha": 0.0}, {"reference": model, "alpha": math.inf}):
        with pytest.raises(UsageError, match="ratio alpha"):
            serve("cleangen", model, **options)
    with pytest.raises(UsageError, match="The scale is -1"):
        serve("suppress-bigrams", model, reference=model, scale=-1.0)


def test_draws_of_one_prompt_differ_and_repeat(model):
    decoding = Decoding(max_new_tokens=12)
    front = serve("suppress-top", model, k=1, n=2)
    found = ask(front, decoding, n=3)
    assert found.keys() == ask(front, decoding, n=3).keys()
    assert said(front, decoding, n=3) == said(front, decoding, n=3)
    assert len({found[Prompt("A").id, i].response for i in range(3)}) == 3
    one = list(front.sample([Draw(Prompt("A"), 2)], decoding, Randomness()))
    assert one[0].response == found[Prompt("A").id, 2].response
