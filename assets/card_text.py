"""The text of a model's card: a README.md as the Hugging Face Hub reads it, and its short form for a version's page.

Whatever a person wrote (names, reasons, settings) is escaped, so that Markdown and HTML show it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from eval.gate.metrics import unit_of

UNKNOWN = "unknown"


def text_of(about: Mapping[str, Any]) -> str:
    """The whole card of what `assets.card.card_of` found out."""
    return "\n".join([*_header(about), *_body(about)]) + "\n"


SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!$&])")


def escaped(value: object) -> str:
    """A text in one line that Markdown and HTML show as it is."""
    return SPECIAL.sub(r"\\\1", " ".join(str(value).split())).replace("\\<", "&lt;").replace("\\&", "&amp;")


def _header(about: Mapping[str, Any]) -> list[str]:
    """The YAML header that the hub reads."""
    base, hub_ids = about["base"], sorted({each["hub"] for each in about["data"] if each["hub"]})
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": each["title"], "type": each["suite"]},
            "metrics": [{"type": each["metric"], "name": each["metric"], "value": round(each["value"], 6)}],
        }
        for each in about["evaluations"]
        if each["value"] is not None
    ]
    header: dict[str, Any] = {
        "license": str(base["license"]).lower(),
        "library_name": "peft" if about["adapter_alone"] else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["alignment-dags", *([about["method"].partition(",")[0]] if about["method"] != UNKNOWN else [])],
    }
    if base["kind"] == "hub":
        header |= {
            "base_model": base["name"],
            "base_model_relation": "adapter" if about["adapter_alone"] else "finetune",
        }
    if hub_ids:
        header["datasets"] = hub_ids
    if results:
        header["model-index"] = [{"name": f"{about['model']} version {about['version']}", "results": results}]
    return ["---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(), "---", ""]


def _body(about: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {escaped(about['model'])}, version {about['version']}"
    yield ""
    if about["description"]:
        yield from (escaped(about["description"]), "")
    yield from (*verdict_lines(about), "")
    yield from ("## Model", "", *_model(about), "")
    yield from ("## Training data", "", *_data_lines(about), "")
    yield from ("## Training", "", *_training(about), "")
    yield from ("## Evaluation", "", *evaluation_lines(about), "")
    if about["certificate"]:
        yield from (f"The recipe was {escaped(about['certificate'])}.", "")
    yield from ("## Limits", "", *(f"- {escaped(each)}" for each in limits_of(about)))
    yield from (f"- Unknown: {escaped(each)}." for each in about["unknown"])
    yield from ("", "## How it was made", "", *_made(about))


def limits_of(about: Mapping[str, Any]) -> list[str]:
    """What a user must know of the version: first, if rows that it learned were withdrawn since."""
    told = about["withdrawn_since"]
    return [*([f"{told[0].upper()}{told[1:]}."] if told else []), *about["limits"]]


def verdict_lines(about: Mapping[str, Any]) -> Iterator[str]:
    """What the gate said and who promoted the version, as sentences of Markdown."""
    decision, gate = about["decision"], about["gate"]
    if gate["verdict"] == UNKNOWN:
        yield "What the gate said is unknown: its report is lost."
    elif decision is None:
        yield f"The gate passed it on {about['made']['registered_at'][:10]}:"
    else:
        override, no_gate = decision["kind"] == "override", gate["verdict"] == "none"
        how = f"promoted it{'' if no_gate else ' despite the gate'}" if override else "made it champion again"
        why = f": {escaped(decision['reason'])}" if decision["reason"] else ""
        said = "The recipe has no gate." if no_gate else f"The gate said {gate['verdict']}:"
        yield f"A person {how} on {decision['at'][:10]}{why}. {said}"
    if gate["verdict"] != "none":
        yield ""
        yield from (f"- {escaped(reason)}" for reason in gate["reasons"])


def _model(about: Mapping[str, Any]) -> Iterator[str]:
    base = about["base"]
    where = f" at `{base['revision']}`" if base["revision"] else ""
    yield f"- Base: {escaped(base['name'])} ({base['kind']}){where}"
    yield f"- Licence: {escaped(base['license'])}"
    if adapter := about["adapter"]:
        how = "these files; the base comes from elsewhere" if about["adapter_alone"] else "merged into the weights"
        bits = f", beside a base quantised to {adapter['quantise']}" if adapter.get("quantise") else ""
        yield f"- Adapter: LoRA of rank {adapter['rank']}{bits}, {how}"
    yield f"- Checkpoint digest: `{about['digest']}`"


def _data_lines(about: Mapping[str, Any]) -> Iterator[str]:
    yield "| used as | source | revision | licence |"
    yield "|---|---|---|---|"
    for each in about["data"]:
        name = escaped(each["name"]) + (f", split {escaped(each['split'])}" if each["split"] else "")
        revision = f"`{each['revision']}`" if each["revision"] else "–"
        yield f"| {each['use']} | {name} | {revision} | {escaped(each['license'])} |"
    rows = about["rows"]
    counts = [f"{number(count)} {what.replace('_', ' ')}" for what, count in rows.items() if count is not None]
    yield ""
    yield f"Preference rows: {', '.join(counts) or UNKNOWN}."


def _training(about: Mapping[str, Any]) -> Iterator[str]:
    yield f"Method: {escaped(about['method'])}."
    if about["settings"]:
        yield ""
        yield "| setting | value |"
        yield "|---|---|"
        for name, value in about["settings"].items():
            text = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
            yield f"| {escaped(name)} | {escaped(text)} |"


def description_of(about: Mapping[str, Any]) -> str:
    """The card in short, as Markdown for the page of a model version: the gate's sentences, each suite's main metric,
    what it was made from, and its limits."""
    mains = {each["suite"]: each["main"] for each in about["evaluations"]}
    short = dict(about) | {
        "evaluations": [each for each in about["evaluations"] if each["metric"] == mains[each["suite"]]]
    }
    data = "; ".join(f"{escaped(each['name'])} ({each['use']}, {escaped(each['license'])})" for each in about["data"])
    rows = about["rows"]["trained"]
    lines = [
        *verdict_lines(about),
        "",
        *evaluation_lines(short),
        "",
        f"Base: {escaped(about['base']['name'])}. Method: {escaped(about['method'])}."
        f" Rows: {UNKNOWN if rows is None else number(rows)}. Data: {data}.",
        "",
        *(f"- {escaped(each)}" for each in limits_of(about)),
        *(f"- Unknown: {escaped(each)}." for each in about["unknown"]),
    ]
    return "\n".join(lines)


def evaluation_lines(about: Mapping[str, Any]) -> Iterator[str]:
    """The table of what was measured, with 95 % intervals."""
    if not about["evaluations"]:
        yield "Nothing was evaluated."
        return
    yield "| suite | metric | n | value | before training | difference | |"
    yield "|---|---|---|---|---|---|---|"
    for each in about["evaluations"]:
        unit = unit_of(each["width"])

        def shown(value: float | None, ends: list[float] | None, sign: str = "", unit: Any = unit) -> str:
            text = unit.format(value, sign)
            return text if not ends else f"{text} [{unit.format(ends[0], sign)}, {unit.format(ends[1], sign)}]"

        yield (
            f"| {escaped(each['title'])} | {escaped(each['metric'])} ({'%' if unit.sign else 'points'}) | {each['n']} |"
            f" {shown(each['value'], each['ci95'])} | {shown(each['baseline'], None)} |"
            f" {shown(each['difference'], each['difference_ci95'], '+')} | {each['verdict']} |"
        )
    yield ""
    yield "Values and differences with 95 % intervals; differences are paired, item by item."
    if about["judge"]:
        yield f"Open answers were graded by {escaped(about['judge'])}."


def _made(about: Mapping[str, Any]) -> Iterator[str]:
    made = about["made"]
    packages = ", ".join(f"{name} {version}" for name, version in made["packages"].items())
    lines = {
        "Trained": made["at"],
        "Recipe": made["recipe"],
        "Code": made["code"],
        "Device": made["device"],
        "Packages": packages,
        "Preference manifest": made["manifest"],
        "Evaluation report": made["report"],
    }
    yield from (f"- {name}: {escaped(value) if value else UNKNOWN}" for name, value in lines.items())
    yield ""
    yield "Made with alignment-dags. `align lineage` leads from this version to its rows."


def number(count: int) -> str:
    """A count with thousands apart."""
    return f"{count:,}"
