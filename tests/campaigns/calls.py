"""The calls of the fuzz campaign: every command, on files and recipes with something odd in them."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaigns import odd
from tests.campaigns.records import FIGURES, KEY, PAIRS, POOLS, PROMPTS, SUITES, TURNS, VOTES

Made = tuple[list[str], "int | None"]


@dataclass
class Calls:
    """What is drawn from: a home with a finished small run, its files, and a folder for odd ones.

    Each method gives the arguments of one call, and the number of records whose fate the call must tell, if it must.
    """

    folder: Path
    recipes: dict[str, dict[str, Any]]
    recipe_file: Path
    model: Path
    samples: Path
    rows: list[Path]
    rng: random.Random
    environ: dict[str, str]
    """Variables of the environment for the call that is made."""
    number: int = 0

    def fresh(self) -> Path:
        """A new, empty folder for the files of one call."""
        shutil.rmtree(made := self.folder / str(self.number), ignore_errors=True)
        made.mkdir(parents=True)
        return made

    def draw(self, number: int, seed: int) -> tuple[list[str], int | None, bool]:
        """The arguments of this call of the campaign, whatever calls were before it, and whether it is a check of
        preferences."""
        self.number, self.rng = number, random.Random(f"{seed} {number}")
        self.environ.clear()
        make = self.rng.choice(self.kinds())
        arguments, records = make()
        checks = arguments[:2] == ["prefs", "check"] and make == self.preferences
        return [*arguments, "--json"] if checks else arguments, records, checks

    def preferences(self) -> Made:
        folder, rng = self.fresh(), self.rng
        records = PAIRS[rng.choice(sorted(PAIRS))]
        path, whole = odd.write_odd(folder, "pairs", records, rng)
        if rng.random() < 0.8:
            return ["prefs", "check", str(path)], len(records) if whole else None
        if rng.random() < 0.4:
            picture = [
                "--picture",
                str(folder / rng.choice(("a.png", "no/a.png", ""))) if rng.random() < 0.5 else "x.txt",
            ]
            return rng.choice((["prefs", "stats", str(path), *picture], ["prefs", "noise", str(path)])), None
        more = ["--model", str(self.model)] if rng.random() < 0.4 else []
        return ["prefs", "show", str(path), *more, *(["--row", "2"] if rng.random() < 0.3 else [])], None

    def odd_recipes(self) -> Made:
        form = self.rng.choice(sorted(self.recipes))
        path = odd.write_odd_yaml(self.fresh() / "recipe.yaml", self.recipes[form], self.rng)
        verb = self.rng.choice(
            (
                ["recipes", "check"],
                ["recipes", "check"],
                ["recipes", "upgrade", "--dry-run"],
                ["plan"],
                ["prefs", "check"],
                ["nights"],
                ["status"],
                ["worth"],
                ["sources", "--dry-run"],
                ["reproduce", "--dry-run", "--seeds", "2"],
                ["prefs", "show"],
                ["prefs", "stats"],
                ["prefs", "noise"],
                ["prefs", "evidence"],
                ["prefs", "find"],
                ["prefs", "withdraw"],
                ["upgrade"],
                ["diff", str(self.recipe_file)],
                ["compare", str(self.recipe_file)],
                ["publish", "small", "--recipe"],
                ["promote", "small", "--recipe"],
                ["judge", "succeed", "old", "new", "--recipe"],
            )
        )
        return [*verb, str(path), *(["text"] if verb[-1] == "find" else [])], None

    def odd_pools(self) -> Made:
        """A pools file with something odd in it, read by what goes by it."""
        path = odd.write_odd_yaml(self.fresh() / "pools.yaml", POOLS, self.rng)
        self.environ["ALIGN_POOLS"] = str(path)
        recipe = str(self.recipe_file)
        verb = self.rng.choice(
            (["pools", "apply"], ["plan", recipe], ["recipes", "check", recipe], ["status"], ["doctor"])
        )
        return verb, None

    def places(self) -> Made:
        """A store in an odd place."""
        folder = self.fresh()
        (folder / "file").write_bytes(b"x")
        (folder / "loop").symlink_to("loop")
        there = ("file", "loop", "file/below", "no", "[a]", "数" * 28, "%20", "a b", "é" * 200)
        addresses = (
            "s3://",
            "nope://x",
            "file://",
            "~nobody/x",
            "memory://x",
            "http://127.0.0.1:9/x",
            " ",
            "::",
            "a::b",
        )
        names = [str(folder / name) for name in there]
        self.environ["ALIGN_STORE"] = self.rng.choice([*names, *addresses])
        recipe = str(self.recipe_file)
        find = ["prefs", "find", recipe, "x"]
        verbs = (
            ["status"],
            ["gc", "--dry-run"],
            ["plan", recipe],
            find,
            ["lineage", "small"],
            ["path", "small"],
            ["doctor"],
        )
        return self.rng.choice(verbs), None

    def people(self) -> Made:
        """Votes and keys of a ballot, and ballots of odd sides and items."""
        folder, rng = self.fresh(), self.rng
        key, votes = folder / "key.json", folder / "votes.csv"
        key.write_text(json.dumps(KEY), encoding="utf-8")
        votes.write_bytes(odd.as_cells(VOTES, ","))
        which = rng.random()
        if which < 0.4:
            votes, _ = odd.write_odd(folder, "votes", VOTES, rng)
        elif which < 0.8:
            key.write_text(json.dumps(odd.mutated(copy.deepcopy(KEY), rng)), encoding="utf-8")
            if rng.random() < 0.3:
                key.write_bytes(odd.broken(key.read_bytes(), rng))
        else:
            items, _ = odd.write_odd(folder, "items", PROMPTS, rng)
            sides = [rng.choice(("small@9", "x", str(folder), str(self.samples))) for _ in range(2)]
            return ["ab", "export", *sides, "--items", str(items), "--out", str(folder / "out")], None
        return ["ab", "import", str(votes), "--key", str(key)], None

    def figures(self) -> Made:
        """Published figures, judgments of two judges, and own tasks, each in an odd file."""
        folder, rng = self.fresh(), self.rng
        judged = [{"question_id": 81 + n, "model": "m", "judgment": "[[7]]", "score": 7, "turn": 1} for n in range(4)]
        table, _ = odd.write_odd(folder, "published", FIGURES, rng)
        judgments, _ = odd.write_odd(folder, "judgments", judged, rng)
        task = {"task": "mine", "dataset_path": "json", "output_type": "generate_until", "doc_to_text": "{{a}}"}
        odd.write_odd_yaml(folder / "mine.yaml", task, rng)
        given = ["--responses", str(judgments), "--data", str(judgments)]
        recipe = str(self.recipe_file)
        verbs = (
            ["reproduce", recipe, "--dry-run", "--seeds", "2", "--published", str(table)],
            ["judge", "succeed", "old", "new", "--judgments", str(judgments), "--base-url", "http://127.0.0.1:9/v1"],
            ["score", "mine", "--include-path", str(folder), *given],
            ["serve", str(folder), "--host", "no host"],
            ["init", str(folder / "a.gguf"), str(judgments), "--out", str(folder / "new.yaml")],
            ["plan", recipe, "--config", str(table)],
        )
        (folder / "a.gguf").write_bytes(odd.broken(b"GGUF" + bytes(60), rng))
        return rng.choice(verbs), None

    def reference(self) -> Made:
        folder, rng = self.fresh(), self.rng
        model = odd.odd_model(folder / "model", self.model, rng) if rng.random() < 0.7 else self.model
        pairs = folder / "pairs.jsonl"
        pairs.write_bytes(odd.as_lines(PAIRS["text"]))
        if rng.random() < 0.4:
            pairs, _ = odd.write_odd(folder, "odd", PAIRS["text"], rng)
        out = folder / "out" / "x.parquet" if rng.random() < 0.9 else folder
        options = rng.choice(
            (
                [],
                ["--max-length", "1"],
                ["--truncation", "x"],
                ["--precision", "int4"],
                ["--today", "x"],
                ["--plain-text", "chat"],
                ["--max-dropped", "7"],
            )
        )
        return ["reference", "--model", str(model), "--pairs", str(pairs), "--out", str(out), *options], None

    def start(self) -> Made:
        folder, rng = self.fresh(), self.rng
        model = odd.odd_model(folder / "model", self.model, rng) if rng.random() < 0.6 else self.model
        pairs, _ = odd.write_odd(folder, "pairs", PAIRS[rng.choice(sorted(PAIRS))], rng)
        more = ["--sft", str(odd.write_odd(folder, "chats", PAIRS["messages"], rng)[0])] if rng.random() < 0.3 else []
        return ["init", str(model), str(pairs), "--out", str(folder / "new.yaml"), *more], None

    def score(self) -> Made:
        folder, rng = self.fresh(), self.rng
        suite = rng.choice(sorted(SUITES))
        items = SUITES[suite]
        ids = [item.get("question_id", item.get("key", item.get("id", n))) for n, item in enumerate(items)]
        answers = [{"id": id, "turns": ["one, #### 1"] * (2 if suite == "mt_bench" else 1)} for id in ids]
        judgments = [
            {
                "question_id": id,
                "model": "m",
                "judge": ["gpt", "single-v1"],
                "user_prompt": "",
                "judgment": "[[7]]",
                "score": 7,
                "turn": turn,
            }
            for id in ids
            for turn in (1, 2)
        ]
        which = rng.choice(("data", "answers", "judgments"))
        data, responses = folder / f"{suite}.jsonl", folder / "answers.jsonl"
        data.write_bytes(odd.as_lines(items))
        responses.write_bytes(odd.as_lines(answers))
        if which == "data":
            data, _ = odd.write_odd(folder, "data", items, rng)
        if which == "answers":
            responses, _ = odd.write_odd(folder, "responses", answers, rng)
        call = ["score", suite, "--responses", str(responses), "--data", str(data), "--out", str(folder / "out")]
        if which == "judgments":
            judged, _ = odd.write_odd(folder, "judgments", judgments, rng)
            return (
                ["score", suite, "--judgments", str(judged)]
                if rng.random() < 0.3
                else [*call, "--judgments", str(judged)]
            ) + (["--out", str(folder / "o")] if rng.random() < 0.5 else []), None
        return call, None

    def judge(self) -> Made:
        folder, rng = self.fresh(), self.rng
        answers = [
            {"question_id": item["question_id"], "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}
            for item in TURNS
        ]
        questions, _ = odd.write_odd(folder, "questions", TURNS, rng)
        given = folder / "answers.jsonl"
        given.write_bytes(odd.as_lines(answers))
        if rng.random() < 0.7:
            questions = folder / "questions.jsonl"
            questions.write_bytes(odd.as_lines(TURNS))
            given, _ = odd.write_odd(folder, "odd-answers", answers, rng)
        out, base = folder / "out.jsonl", "http://127.0.0.1:9/v1"
        if rng.random() < 0.3:
            out, _ = odd.write_odd(folder, "out", [{"question_id": 81, "judgment": "[[7]]"}], rng)
        return [
            "judge",
            "mt_bench",
            "--questions",
            str(questions),
            "--answers",
            str(given),
            "--judge-model",
            "m",
            "--out",
            str(out),
            "--base-url",
            base,
            "--retries",
            "0",
            "--timeout",
            "1",
        ], None

    def compare(self) -> Made:
        import pyarrow.parquet as pq

        folder, rng = self.fresh(), self.rng
        path = folder / "samples.parquet"
        if rng.random() < 0.5:
            path.write_bytes(odd.broken(self.samples.read_bytes(), rng))
        else:
            pq.write_table(odd.odd_table(pq.read_table(self.samples).to_pylist(), rng), path)
        sides = [str(self.samples), str(path)]
        rng.shuffle(sides)
        options = rng.choice(([], ["--margin", "nan"], ["--metric", "x"], ["--margin", "-1"]))
        return ["compare", *sides, *options], None

    def damaged_rows(self) -> Made:
        """A search in a home where the file of a shard's rows is broken; mended before the next call."""
        path = self.rng.choice(self.rows)
        data = path.read_bytes()
        path.with_suffix(".kept").write_bytes(data)
        path.write_bytes(odd.broken(data, self.rng))
        verb = self.rng.choice(
            (
                ["prefs", "find", str(self.recipe_file), "Name"],
                ["lineage", "--row", "0" * 64],
                ["prefs", "withdraw", str(self.recipe_file), "--row-id", "0" * 64],
            )
        )
        return verb, None

    def names(self) -> Made:
        """Verbs over registered models and recipes, with odd names."""
        rng, folder = self.rng, self.fresh()
        names = (
            "small",
            "small@champion",
            "small@1",
            "small@",
            "@",
            "small@2",
            "",
            " ",
            "a/b",
            "é" * 300,
            odd.LONG,
            "../x",
            "[",
            "'",
            "small@None",
            "%s",
            "\n",
        )
        name, other = rng.choice(names), rng.choice(names)
        calls = (
            ["lineage", name],
            ["lineage", name, "--rows", str(folder / rng.choice(("r.parquet", "r.csv", "r.x", "")))],
            ["lineage", "--row", name],
            ["export", name, "--to", str(folder / "to")],
            ["path", name],
            ["promote", name, "--to", other],
            ["promote", name],
            ["promote", name, "--override"],
            ["gc", "--dry-run", "--keep", other],
            ["gc", name, "--dry-run"],
            ["report", name, "--out", str(folder / "r.html")],
            ["nights", name, "--last", rng.choice(("0", "-1", "x", "1"))],
            ["status", name],
            ["diff", name, other],
            ["compare", name, other],
            ["backfill", str(self.recipe_file), "--shards", name],
            ["backfill", str(self.recipe_file), "--stage", name, "--shards", "nothing"],
            ["run", name],
            ["run", str(self.recipe_file), "--set", f"{name}={other}"],
            ["prefs", "find", str(self.recipe_file), name],
            ["prefs", "withdraw", str(self.recipe_file), "--row-id", name],
            ["prefs", "withdraw", str(self.recipe_file), "--shard", name],
            ["prefs", "restore", str(self.recipe_file), "--row-id", name],
            ["prefs", "show", str(self.recipe_file), "--row", rng.choice(("0", "1", "99", "x"))],
            ["judge", "succeed", "old", "new", "--judgments", str(self.recipe_file)],
            ["upgrade", name],
            ["card", name],
            ["card", name, "--out", str(folder)],
            ["publish", name],
            ["worth", name],
            ["sources", name, "--dry-run"],
            ["sources", str(self.recipe_file), "--dry-run", "--source", name],
            ["reproduce", name, "--dry-run"],
            ["prefs", "evidence", name],
            ["night", name],
            ["serve", name, "--host", "no host"],
            ["ab", "export", name, other, "--items", other, "--out", str(folder / "ballot")],
            ["plan", str(self.recipe_file), "--config", name],
            ["score", name, "--responses", str(self.recipe_file), "--data", str(self.recipe_file)],
            ["recipes", "check", name],
            [name],
            ["prefs", "check", name],
        )
        return [argument.replace("\x00", "") for argument in rng.choice(calls)], None

    def kinds(self) -> list[Callable[[], Made]]:
        """Every kind of call, as often as it is drawn."""
        often = [self.preferences] * 6 + [self.odd_recipes] * 6 + [self.score] * 3 + [self.names] * 3
        rest = [self.reference, self.start, self.judge, self.compare, self.damaged_rows, self.odd_pools]
        return [*often, *rest, self.reference, self.places, self.people, self.figures]
