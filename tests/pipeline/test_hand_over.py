"""A registered model is handed over: its card says what is known, a server answers as evaluations do, and what the gate
passed is published once."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markupsafe import escape
from openai import OpenAI

from alignment.data.files import pin_file
from alignment.errors import BadInput
from alignment.models.checkpoint import digest_checkpoint
from alignment.recipe import Generate, Publish, Recipe, load_recipe, parse_recipe
from alignment.stages import execute
from alignment.store import Commit, Store
from alignment_dags.registry.ab import export_ballot
from alignment_dags.registry.promote import Promotion, promote
from alignment_dags.registry.registrations import registration_of
from alignment_dags.registry.serve import find, generator_of, serve, token_of
from assets import publication
from assets.building.upstream import Upstream
from assets.card import card_of, own_interval
from assets.card_text import escaped
from assets.publication import publish_model
from assets.registered_model import hand_over
from eval.answers.files import read_responses
from eval.stages.responses import STAGE, ResponsesRequest
from eval.suites import SuiteSpec
from resources.mlflow import MAX_DESCRIPTION, Tracking
from tests.pipeline.test_promotion import FAILS, PASSES, carried_out_alone

Align = Callable[..., tuple[int, dict[str, Any], str]]
Made = Callable[..., tuple[Upstream, Path]]


@pytest.fixture
def made(small_recipe: dict[str, Any], tmp_path: Path, finished: Callable[..., Upstream]) -> Made:
    """Brings the small recipe, with changes, up to date; returns its artifacts and its file."""

    def make(failure: str | None = None, **changed: Any) -> tuple[Upstream, Path]:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**small_recipe, "gate": PASSES, **changed}), encoding="utf-8")
        return finished(load_recipe(path), failure=failure), path

    return make


def registered(upstream: Upstream) -> Commit:
    return registration_of(upstream.store, "small", "champion")


@contextmanager
def serving(model: str, token: str) -> Iterator[str]:
    server = serve(find(model, print), "127.0.0.1", 0, token, "float32")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# The card.


def test_the_card_says_what_the_records_say_and_names_what_they_do_not(
    made: Made, align: Align, tmp_path: Path
) -> None:
    upstream, path = made()
    store, registration = upstream.store, registered(upstream)
    card = card_of(store, registration)
    policy = store.commit_of(registration.inputs["policy"])
    report = store.commit_of(registration.inputs["report"])
    assert card.about["digest"] == policy.digest and card.about["base"]["name"] == "model"
    assert card.about["method"] == "dpo" and card.about["settings"]["beta"] == 0.1
    assert card.about["settings"]["batch_size"] == 8 and card.about["settings"]["max_length"] == 256
    assert card.about["rows"]["trained"] == policy.summary["rows_trained"]
    compared = report.summary["comparisons"]["ifeval"]["prompt_level_strict_acc"]
    (line,) = (one for one in card.about["evaluations"] if one["metric"] == "prompt_level_strict_acc")
    assert (line["difference"], line["difference_ci95"]) == (compared["difference"], compared["ci95"])
    assert line["ci95"][0] <= line["value"] <= line["ci95"][1]
    assert card.unknown == card.licences == ["licence of the model (model)", "licence of the preferences pairs.jsonl"]
    assert "- Unknown: licence of the preferences pairs.jsonl." in card.text
    assert "Safety was not measured" in card.text
    assert str(tmp_path) not in card.text and "/inputs" not in card.text, "of paths only the last part"
    header = ModelCard(card.text).data.to_dict()
    assert header["license"] == "unknown" and header["library_name"] == "transformers" and "base_model" not in header
    assert header["model-index"][0]["results"][0]["dataset"] == {"name": "IFEval", "type": "ifeval"}

    code, told, error = align("card", "small")
    assert code == 0, error
    assert told["text"] == card.text and told["unknown"] == card.unknown
    code, told, error = align("export", "small", "--to", str(tmp_path / "out"))
    assert code == 0, error
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == card.text
    assert told["unknown"] == card.unknown

    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    written["sft"]["adopt"]["license"] = "apache-2.0"
    written["preferences"]["license"] = "CC-BY-4.0"
    known = card_of(store, registration, written)
    assert known.unknown == [] and "| preferences | pairs.jsonl | – | CC-BY-4.0 |" in known.text
    assert ModelCard(known.text).data.to_dict()["license"] == "apache-2.0"
    written["preferences"]["files"] = ["other.jsonl"]  # another source's licence says nothing of this one
    assert card_of(store, registration, written).unknown == ["licence of the preferences pairs.jsonl"]


def test_a_licence_moves_no_key(small_recipe: dict[str, Any]) -> None:
    from alignment_dags.run.workspace import Workspace
    from resources.pools import load_pools

    def keys(data: dict[str, Any]) -> dict[str, str]:
        workspace = Workspace(parse_recipe(data, "x", {}), load_pools())
        node = next(node for node in workspace.nodes if node.name == "base_model")
        return {node.name: node.stage.key(node.request(workspace.upstream(), None))}

    given = json.loads(json.dumps(small_recipe))
    given["base_model"]["license"] = given["preferences"]["license"] = "MIT"
    given["publish"] = {"folder": "out"}
    assert keys(given) == keys(small_recipe)
    assert "publish" not in Recipe.model_validate(small_recipe).model_dump()


def test_text_of_people_is_shown_as_it_is() -> None:
    assert escaped("a|b\n<script> *x* `y` &amp; [z](u)") == (r"a\|b &lt;script\> \*x\* \`y\` &amp;amp; \[z\](u)")


def test_the_interval_of_a_fraction_stays_within_its_scale() -> None:
    from statsmodels.stats.proportion import proportion_confint

    for right, n in ((99, 100), (100, 100), (0, 20), (7, 20)):
        share = right / n
        low, high = own_interval(share, (share * (1 - share) / n) ** 0.5, n, 1.0) or (None, None)
        assert (low, high) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-4)
    assert own_interval(9.0, 0.5, 10, 9.0) == [9.0 - 0.98, 9.0 + 0.98] and own_interval(9.0, 0.0, 10, 9.0) is None


def test_the_page_of_a_version_in_mlflow_reads_like_a_card(made: Made) -> None:
    upstream, _ = made()
    client = Tracking().client()
    page = client.get_model_version("small", "1")
    assert page.description.startswith("The gate passed it on ") and len(page.description) <= MAX_DESCRIPTION
    for words in (
        "ifeval/prompt\\_level\\_strict\\_acc",
        "| IFEval |",
        "- Unknown: licence",
        "[README.md](",
        "[report](",
    ):
        assert words in page.description
    there = {file.path for file in client.list_logged_model_artifacts(str(page.source).removeprefix("models:/"))}
    assert {"README.md", "MLmodel"} <= there
    report = upstream.store.commit_of(registered(upstream).inputs["report"])
    Tracking().describe("small", "1", "line\n" * 5000, {"README.md": "x"}, report.key)
    assert len(client.get_model_version("small", "1").description) <= MAX_DESCRIPTION


# The server.


def test_an_exported_model_that_is_served_answers_as_in_process(
    made: Made, align: Align, small_data: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """export → serve → `generate: endpoint`: the same texts in float32, and so the same scores."""
    upstream, _ = made()
    policy = registered(upstream).inputs["policy"]
    code, _, error = align("export", "small@champion", "--to", str(tmp_path / "out"))
    assert code == 0, error
    assert digest_checkpoint(tmp_path / "out").digest == policy.digest, "the card is no part of the model"
    suites = {
        "gsm8k": SuiteSpec(
            name="gsm8k", data=pin_file(small_data["gsm8k"]), few_shot_data=pin_file(small_data["few_shot"]),
            num_fewshot=2, max_new_tokens=24,
        ),
        "ifeval": SuiteSpec(name="ifeval", data=pin_file(small_data["ifeval"]), max_new_tokens=24),
    }  # fmt: skip
    given = {"checkpoint": policy, "suites": suites, "seed": 1, "precision": "float32", "batch_tokens": 8192}
    monkeypatch.setenv("OPENAI_API_KEY", "the-token")
    answers = {}
    for model in (str(tmp_path / "out"), "small@champion"):
        with serving(model, "the-token") as url:
            store = Store(str(tmp_path / f"store-{len(answers)}"))
            request = ResponsesRequest(**given, generate=Generate(kind="endpoint", base_url=url))
            answers[model] = texts(request, store, upstream.store)
    local = texts(ResponsesRequest(**given), Store(str(tmp_path / "store-local")), upstream.store)
    assert answers[str(tmp_path / "out")] == answers["small@champion"] == local
    assert any(turn for turns in local.values() for turn in turns[0])


def texts(request: ResponsesRequest, store: Store, source: Store) -> dict[str, Any]:
    """Answers by suite and item, made in a store of their own that has a copy of the checkpoint."""
    folder = source.path(request.checkpoint.kind, request.checkpoint.key)
    shutil.copytree(folder, store.path(request.checkpoint.kind, request.checkpoint.key))
    made = store.fetch(execute(STAGE, request, store).artifact)
    return {
        f"{suite}/{one.id}": (one.turns, one.tokens)
        for suite in request.suites
        for one in read_responses(made / suite / "responses.jsonl")
    }


def test_the_command_serves_until_it_is_stopped_and_says_its_token_once(
    made: Made, align_command: list[str], home: Path
) -> None:
    made()
    command = [*align_command, "serve", "small@champion", "--port", "0", "--precision", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "ALIGN_SERVE_TOKEN"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        url = server.stdout.readline().strip()
        said = []
        while not said or not said[-1].startswith("token"):
            said.append(server.stderr.readline())
        token = said[-1].rsplit(" ", 1)[1].strip()
        with OpenAI(api_key=token, base_url=url, max_retries=0) as client:
            names = [model.id for model in client.models.list()]
            answer = client.chat.completions.create(
                model="small@1", messages=[{"role": "user", "content": "Name 3"}], max_tokens=4
            )
        server.send_signal(signal.SIGINT)
        rest = server.stdout.read() + server.stderr.read()
        assert server.wait(60) == 130 and "Traceback" not in rest and token not in rest
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
    assert names[:2] == ["small", "small@1"] and re.fullmatch(r"[0-9a-f]{12}", names[2])
    assert answer.usage is not None and answer.usage.completion_tokens == 4


def test_a_token_is_asked_for_wherever_others_could_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    token, is_new = token_of("TOKEN", "127.0.0.1", False)
    assert is_new and token is not None and len(token) >= 32 and token != token_of("TOKEN", "0.0.0.0", False)[0]
    assert token_of("TOKEN", "::1", True) == (None, False)
    with pytest.raises(BadInput, match=r"--no-token.*0\.0\.0\.0 is open to others"):
        token_of("TOKEN", "0.0.0.0", True)
    monkeypatch.setenv("TOKEN", "mine")
    assert token_of("TOKEN", "0.0.0.0", False) == ("mine", False)


# Publishing.


def test_a_version_is_published_once_when_it_is_registered(made: Made, align: Align, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    upstream, path = made(publish={"folder": str(shared)})
    policy = registered(upstream).inputs["policy"]
    assert sorted(entry.name for entry in shared.iterdir()) == ["1", "champion"]
    assert digest_checkpoint(shared / "champion").digest == policy.digest
    assert json.loads((shared / "1" / "alignment-dags.json").read_text())["digest"] == policy.digest
    before = {entry: entry.stat().st_mtime_ns for entry in (shared / "1").iterdir()}

    code, told, error = align("publish", "small", "--recipe", str(path))
    assert code == 0, error
    assert not told["done"] and told["place"] == str(shared / "1")
    assert {entry: entry.stat().st_mtime_ns for entry in (shared / "1").iterdir()} == before

    licensed = load_recipe(path).written | {"preferences": load_recipe(path).written["preferences"] | {"license": "X"}}
    settings = Publish(folder=str(shared))
    assert publish_model(upstream.store, registered(upstream), settings, licensed).done, "a card that knows more"
    assert "| X |" in (shared / "1" / "README.md").read_text(encoding="utf-8")
    (shared / "champion").unlink()
    (shared / "champion").mkdir()
    with pytest.raises(BadInput, match=r"champion, field 'publish\.folder': is no link"):
        publish_model(upstream.store, registered(upstream), settings)
    (shared / "champion").rmdir()
    (shared / "1" / "alignment-dags.json").write_text("{}")
    with pytest.raises(BadInput, match="holds something else"):
        publish_model(upstream.store, registered(upstream), settings)


def test_an_interrupted_publication_leaves_nothing(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream, _ = made()

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publication.shutil, "copyfile", killed)
        publish_model(upstream.store, registered(upstream), Publish(folder=str(tmp_path / "shared")))
    assert list((tmp_path / "shared").iterdir()) == []


def test_what_the_gate_did_not_pass_stays_inside_unless_the_recipe_says_otherwise(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    upstream, path = made("not registered", gate=FAILS, publish={"folder": str(shared)})
    assert not shared.exists(), "the gate failed: nothing is registered, nothing is published"
    monkeypatch.setattr("alignment_dags.registry.promote._carry_out", carried_out_alone)
    promote(Promotion("small", override=True, reason="we need it", recipe=path), print)
    assert not shared.exists()
    registration = registered(upstream)
    outcome = publish_model(upstream.store, registration, Publish(folder=str(shared)))
    assert outcome.place is None and "promoted despite the gate" in str(outcome.withheld)
    outcome = publish_model(upstream.store, registration, Publish(folder=str(shared), even_if_overridden=True))
    assert outcome.done and "The gate did not pass it (fail)" in (shared / "1" / "README.md").read_text(
        encoding="utf-8"
    )


def test_a_champion_stays_one_when_it_cannot_be_published(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, path = made()
    (tmp_path / "file").write_text("in the way")
    recipe = load_recipe(path).model_copy(update={"publish": Publish(folder=str(tmp_path / "file" / "shared"))})
    with caplog.at_level("WARNING"):
        hand_over(upstream.store, Tracking(), registered(upstream), recipe)
    alerts = [record.getMessage() for record in caplog.records if record.name == "alignment_dags.alerts"]
    (line,) = [alert for alert in alerts if alert.endswith(" (alert not_published)")]
    assert line.startswith("small: small version 1 was registered and not published: ")
    assert "field 'publish.folder': cannot be published to: " in line and "`align publish small` repeats it (" in line


class FakeHub:
    """What `HfApi` does with one repository, kept in a folder."""

    endpoint = "https://hub.example"

    def __init__(self, folder: Path, private: bool | None) -> None:
        self.folder, self.private, self.commits = folder, private, []  # type: ignore[var-annotated]
        folder.mkdir()

    def repo_exists(self, repository: str) -> bool:
        return self.private is not None

    def create_repo(self, repository: str, private: bool) -> None:
        assert self.private is None
        self.private = private
        (self.folder / ".gitattributes").touch()

    def model_info(self, repository: str) -> Any:
        names = [SimpleNamespace(rfilename=path.name) for path in self.folder.iterdir()]
        return SimpleNamespace(private=self.private, sha=str(len(self.commits)), siblings=names)

    def hf_hub_download(self, repository: str, name: str, revision: str) -> str:
        assert revision == str(len(self.commits))
        return str(self.folder / name)

    def create_commit(self, repository: str, operations: list[Any], commit_message: str, parent_commit: str) -> None:
        assert parent_commit == str(len(self.commits))
        self.commits.append((commit_message, sorted(one.path_in_repo for one in operations)))
        for one in operations:
            if type(one).__name__ == "CommitOperationDelete":
                (self.folder / one.path_in_repo).unlink()
            else:
                with one.as_file() as stream:
                    (self.folder / one.path_in_repo).write_bytes(stream.read())


def test_a_repository_on_the_hub_gets_one_private_commit(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, path = made()
    store, registration = upstream.store, registered(upstream)
    hub = FakeHub(tmp_path / "hub", None)
    monkeypatch.setattr(publication, "hub_api", lambda settings: hub)
    settings = Publish(hub="team/small")
    outcome = publish_model(store, registration, settings)
    assert outcome.done and outcome.place == "https://hub.example/team/small" and hub.private is True
    assert digest_checkpoint(hub.folder).digest == registration.inputs["policy"].digest
    (said, files), *_ = hub.commits
    assert said == f"small version 1 ({registration.inputs['policy'].digest[:12]})" and "README.md" in files
    assert not publish_model(store, registration, settings).done and len(hub.commits) == 1

    (hub.folder / "alignment-dags.json").write_text("{}")  # of an earlier version, with a file that is gone since
    (hub.folder / "model-00001-of-00002.safetensors").touch()
    (hub.folder / "LICENSE").touch()
    assert publish_model(store, registration, settings).done
    there = {entry.name for entry in hub.folder.iterdir()}
    assert "model-00001-of-00002.safetensors" not in there and {"LICENSE", ".gitattributes"} <= there

    written = load_recipe(path).written
    written["preferences"]["license"] = "CC-BY-4.0"
    assert publish_model(store, registration, settings, written).done
    assert hub.commits[-1][1] == ["README.md"], "a card that knows more is all that changed"


def test_a_public_repository_needs_every_licence_and_a_private_one_must_be_private(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, path = made()
    store, registration = upstream.store, registered(upstream)
    hub = FakeHub(tmp_path / "hub", False)
    monkeypatch.setattr(publication, "hub_api", lambda settings: hub)
    with pytest.raises(BadInput, match=r"publish\.private.*team/small is public"):
        publish_model(store, registration, Publish(hub="team/small"))
    public = Publish(hub="team/small", private=False)
    with pytest.raises(BadInput, match=r"licence of the model \(model\), licence of the preferences pairs\.jsonl"):
        publish_model(store, registration, public)
    assert hub.commits == []
    written = load_recipe(path).written
    written["preferences"]["license"], written["sft"]["adopt"]["license"] = "CC-BY-4.0", "MIT"
    assert publish_model(store, registration, public, written).done


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({}, "give exactly one of folder, hub"),
        ({"folder": "a", "hub": "b/c"}, "give exactly one of folder, hub"),
        ({"folder": "a", "private": False}, "private goes with hub"),
        ({"hub": "https://huggingface.co/a/b"}, "pattern"),
        ({"hub": "a/b", "token_env": "hf_secret!"}, "name of an environment variable"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Publish(**section)


# Votes.


def test_stored_answers_become_a_ballot_and_votes_a_win_rate(made: Made, align: Align, tmp_path: Path) -> None:
    upstream, _ = made()
    out, key = tmp_path / "ballot", tmp_path / "ballot.key.json"
    before = sorted(Path(upstream.store.root).rglob("*"))
    asked = ("ab", "export", "small@sft", "small@1", "--items", "ifeval", "--out", str(out), "--seed", "3")
    code, told, error = align(*asked)
    assert code == 0, error
    assert sorted(path.name for path in out.iterdir()) == ["vote.html", "votes.csv"] and told["key"] == str(key)
    assert told["pairs"] + told["identical"] + told["left_out"] == 6 and told["pairs"] > 1
    known = json.loads(key.read_text(encoding="utf-8"))
    page = (out / "vote.html").read_text(encoding="utf-8")
    assert page.count("<section") == told["pairs"] and "without commas" in page and "small@" not in page
    with (out / "votes.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:  # somebody who always prefers the policy
        row["vote"] = "right" if known["pairs"][row["pair"]]["left"] == "a" else "left"
    with (tmp_path / "ann.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    code, result, error = align("ab", "import", str(tmp_path / "ann.csv"), "--key", str(key))
    assert code == 0, error
    assert (result["b"], result["wins"], result["losses"]) == ("small@1", told["pairs"], 0)
    assert result["win_rate"] == pytest.approx((told["pairs"] + told["identical"] / 2) / (6 - told["left_out"]))
    assert sorted(Path(upstream.store.root).rglob("*")) == before, "nothing of it goes into the store"

    for again, why in (
        (asked, "is there already: name another"),
        ((*asked[:2], "small@1", "small@1", "--items", "ifeval", "--out", str(tmp_path / "x")), "nothing to vote on"),
        ((*asked[:4], "--items", "ifevl", "--out", str(tmp_path / "x")), "no answers to a suite 'ifevl'; did you mean"),
        ((*asked[:7], str(tmp_path / "y"), "--key", str(tmp_path / "y" / "k")), "lies in the folder that voters get"),
    ):
        code, _, error = align(*again)
        assert code == 2 and why in error, error
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_two_checkpoints_answer_a_file_of_prompts_for_a_ballot(made: Made, small_inputs: Path, tmp_path: Path) -> None:
    made()
    prompts = tmp_path / "prompts.jsonl"
    asked = [{"prompt": "Name 3"}, {"id": "two", "turns": ["Name 4", "And 5?"]}]
    prompts.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
    stored = tmp_path / "stored.jsonl"
    stored.write_text("".join(json.dumps({"id": name, "turns": ["x", "y"]}) + "\n" for name in ("0", "two")))
    settings: dict[str, Any] = {"key": None, "seed": 1, "limit": None, "max_new_tokens": 6, "precision": "float32"}
    folder = str(small_inputs / "model")
    told = export_ballot("small@1", folder, str(prompts), tmp_path / "one", say=print, **settings)
    assert told["pairs"] + told["identical"] == 2
    served = find("small@1", print)
    (wanted,) = generator_of(served, "float32").answer([[{"role": "user", "content": "Name 3"}]], 6)
    told = export_ballot("small@1", str(stored), str(prompts), tmp_path / "two", say=print, **settings)
    page = (tmp_path / "two" / "vote.html").read_text(encoding="utf-8")
    assert told["pairs"] == 2 and "And 5?" in page and str(escape(wanted.text.strip())) in page
    for rows, why in (
        ([{"prompt": 3}], "row 1, field 'prompt': expected a prompt"),
        ([{"turns": []}], "row 1, field 'turns'"),
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], "row 2, field 'id': id 1 appears twice"),
    ):
        prompts.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        with pytest.raises(BadInput, match=why):
            export_ballot("small@1", folder, str(prompts), tmp_path / "none", say=print, **settings)
