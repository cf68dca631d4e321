"""The verb `sample`: plan, resume, cache, failures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import whorl
from whorl.errors import RemoteError, UsageError
from whorl.samplers.sample import keep, plan, sample
from whorl.samplers.seam import Randomness
from whorl.transcripts.cache import Cache
from whorl.transcripts.importing import import_file
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript
from whorl.transcripts.store import open_set

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
PROMPTS = [Prompt(f"Question {number}?", "questions") for number in range(6)]


class Script:
    """A sampler that answers with its draw's own name, fails for some prompts, and may break down.

    Args:
        fails: Prompts that get no answer.
        breaks_after: Answers before everything fails.
    """

    model, template = ModelId("script"), Template()

    def __init__(self, fails=(), breaks_after=None):
        self.fails, self.breaks_after, self.asked = set(fails), breaks_after, []

    def sample(self, draws, decoding, randomness):
        for draw in draws:
            if len(self.asked) == self.breaks_after:
                raise RemoteError("the script broke down")
            self.asked.append(draw)
            failed = draw.prompt.content in self.fails
            yield Transcript(
                self.model, draw.prompt, self.template, decoding, "" if failed else f"{draw.prompt.id} {draw.sample_index}",
                draw.sample_index, randomness.stream, "error" if failed else "stop", {"response_tokens": 3},
                error="Broken" if failed else None,
            )  # fmt: skip


def texts(folder):
    with open_set(folder) as found:
        records = [record for record in found.records() if record.ok]
    assert len({record.id for record in records}) == len(records)
    return {record.id: record.response for record in records}


def test_every_prompt_so_many_times_in_order(tmp_path):
    script, seen = Script(), []
    done = sample(
        script, PROMPTS, out=tmp_path / "set", n_samples=3, progress=lambda *step: seen.append(step)
    )  # fmt: skip
    assert [(d.prompt, d.sample_index) for d in script.asked] == [(p, i) for p in PROMPTS for i in range(3)]
    assert (done.new, done.kept, done.from_cache, done.failed, done.n_prompts, done.tokens) == (18, 0, 0, 0, 6, 54)
    assert len(texts(tmp_path / "set")) == 18
    assert seen[0] == ("answers", 0, 18)
    assert seen[-1] == ("answers", 18, 18)
    assert json.loads(json.dumps(done.to_dict()))["path"] == str(tmp_path / "set")


def test_the_same_call_continues(tmp_path):
    broken = Script(breaks_after=7)
    with pytest.raises(RemoteError, match="broke down"):
        sample(broken, PROMPTS, out=tmp_path, n_samples=2)
    assert len(texts(tmp_path)) == 7  # what was finished is kept
    rest = Script()
    done = sample(rest, PROMPTS, out=tmp_path, n_samples=2)
    assert (done.kept, done.new, len(rest.asked)) == (7, 5, 5)
    sample(Script(), PROMPTS, out=tmp_path / "whole", n_samples=2)
    assert texts(tmp_path) == texts(tmp_path / "whole")
    again = Script()
    assert sample(again, PROMPTS, out=tmp_path, n_samples=2).new == 0
    assert again.asked == []


def test_more_samples_ask_only_for_the_new_ones(tmp_path):
    sample(Script(), PROMPTS, out=tmp_path, n_samples=2)
    more = Script()
    done = sample(more, PROMPTS, out=tmp_path, n_samples=3)
    assert (done.kept, done.new) == (12, 6)
    assert {draw.sample_index for draw in more.asked} == {2}


def test_failures_are_logged_and_tried_again(tmp_path):
    done = sample(Script(fails={"Question 2?"}), PROMPTS, out=tmp_path)
    assert (done.new, done.failed) == (5, 1)
    with open_set(tmp_path) as found:
        assert Counter(record.error for record in found.records()) == {None: 5, "Broken": 1}
    done = sample(Script(), PROMPTS, out=tmp_path)
    assert (done.kept, done.new, done.failed) == (5, 1, 0)


def test_the_cache_answers_for_other_sets(tmp_path):
    with Cache(tmp_path / "cache") as cache:
        sample(Script(fails={"Question 1?"}), PROMPTS[:4], out=tmp_path / "one", cache=cache)
        second = Script()
        done = sample(second, PROMPTS, out=tmp_path / "two", cache=cache)
        assert (done.from_cache, done.new, done.kept) == (3, 3, 0)
        assert {d.prompt.content for d in second.asked} == {"Question 1?", "Question 4?", "Question 5?"}
        assert sample(Script(), PROMPTS, out=tmp_path / "three", cache=cache, refresh=True).new == 6
        assert sample(Script(), PROMPTS, out=tmp_path / "four", cache=cache, offline=True).from_cache == 6
    assert texts(tmp_path / "two") == texts(tmp_path / "three") == texts(tmp_path / "four")


def test_offline_asks_no_server(tmp_path):
    script = Script()
    with pytest.raises(UsageError, match="Offline, and 6 answers of 'script' are in neither the set nor the cache"):
        sample(script, PROMPTS, out=tmp_path, offline=True)
    assert script.asked == []


def test_the_plan_is_what_happens_and_writes_nothing(tmp_path):
    out = tmp_path / "set"
    with Cache(tmp_path / "cache") as cache:
        first = plan(Script(), PROMPTS, out=out, n_samples=2, cache=cache)
        assert not out.exists()
        assert (first.n_draws, first.new, first.kept, first.cached, first.new_tokens) == (12, 12, 0, 0, 12 * 128)
        assert first.prompt_tokens == 33  # 11 characters each, four a token
        sample(Script(), PROMPTS[:3], out=tmp_path / "other", cache=cache)
        with pytest.raises(RemoteError):
            sample(Script(breaks_after=2), PROMPTS, out=out, n_samples=2)
        second = plan(Script(), PROMPTS, out=out, n_samples=2, cache=cache)
        assert (second.kept, second.cached, second.new) == (2, 2, 8)
        done = sample(Script(), PROMPTS, out=out, n_samples=2, cache=cache)
    assert (done.kept, done.from_cache, done.new) == (2, 2, 8)
    json.dumps(second.to_dict(), allow_nan=False)


def test_other_settings_are_refused_before_anything_is_drawn(tmp_path):
    sample(Script(), PROMPTS, out=tmp_path)
    script = Script()
    with pytest.raises(UsageError, match=r"'script' with another decoding \(temperature 1.0, not 0.5\)"):
        sample(script, PROMPTS, out=tmp_path, decoding=Decoding(temperature=0.5))
    script.template = Template("chat", "0" * 64)
    with pytest.raises(UsageError, match=r"another template \(kind raw, not chat\)"):
        sample(script, PROMPTS, out=tmp_path)
    with pytest.raises(UsageError, match="another prompts"):
        sample(Script(), PROMPTS[:2], out=tmp_path)
    with pytest.raises(UsageError, match="0 samples a prompt"):
        sample(script, PROMPTS, out=tmp_path, n_samples=0)
    assert script.asked == []


def test_a_second_stream_is_a_second_set_of_answers(tmp_path):
    sample(Script(), PROMPTS, out=tmp_path)
    assert sample(Script(), PROMPTS, out=tmp_path, randomness=Randomness(stream="control")).new == 6
    assert len(texts(tmp_path)) == 12


def test_imported_records_are_kept_once(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": f"Q{i}", "a": f"A{i}"}) + "\n" for i in range(3)))
    records = import_file(file, {"prompt": "q", "response": "a"}, "them")
    assert keep(records, tmp_path / "set") == 3
    assert keep(records, tmp_path / "set") == 0
    assert set(texts(tmp_path / "set").values()) == {"A0", "A1", "A2"}


WORKER = """
import sys
from whorl.samplers.local import open_local
from whorl.samplers.sample import sample
from whorl.transcripts.record import Decoding, Prompt

prompts = [Prompt(f"def function_{number}(", "names") for number in range(8)]
sampler = open_local(sys.argv[1], n_threads=1, batch_size=4)
done = sample(sampler, prompts, out=sys.argv[2], n_samples=4, decoding=Decoding(max_new_tokens=48))
print(done.new, done.kept)
"""


def lines_in(folder):
    return [
        line for path in sorted(folder.glob("*/part-*.jsonl")) for line in path.read_bytes().splitlines(keepends=True)
    ]


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_answers(tmp_path):
    """SIGKILL in the middle, a torn last line on top; then the same command, and an uninterrupted run to compare."""
    command = [sys.executable, "-c", WORKER, str(ZOO / "base-0")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen([*command, str(cut)], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(lines_in(cut)) < 8 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    n_kept = len(lines_in(cut))
    assert n_kept >= 8
    assert n_kept % 4 == 0  # whole batches
    assert n_kept < 32
    part = next(cut.glob("*/part-*.jsonl"))
    part.write_bytes(part.read_bytes() + lines_in(cut)[0][:100])

    resumed = subprocess.run([*command, str(cut)], env=env, capture_output=True, text=True, check=True)
    assert resumed.stdout.split() == [str(32 - n_kept), str(n_kept)]
    subprocess.run([*command, str(whole)], env=env, capture_output=True, text=True, check=True)
    assert len(lines_in(cut)) == 32
    assert texts(cut) == texts(whole)
