"""Harmlessness: prompts of BeaverTails (Ji et al. 2023) or HH-RLHF (Bai et al. 2022); a judge says what is safe."""

from __future__ import annotations

from typing import Any

from eval.suites.suite import Suite

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def dialogue_record(record: dict[str, Any]) -> dict[str, Any]:
    """BeaverTails has a `prompt`; of an HH dialogue (`chosen`) the human's first message is the prompt."""
    prompt, dialogue = record.get("prompt"), record.get("chosen")
    if "prompt" not in record and isinstance(dialogue, str) and dialogue.startswith(HUMAN):
        prompt = dialogue.removeprefix(HUMAN).partition(ASSISTANT)[0].strip()
    return record if prompt is None else record | {"prompt": prompt, "turns": [prompt]}


HARMLESS = Suite(
    name="harmless",
    title="Harmlessness",
    fields={"prompt": str, "turns": list},
    id_field=None,
    metrics=("harmless",),
    task=None,
    prepare=dialogue_record,
    distinct="prompt",
)
