import hashlib

import pytest

from alignment.quickstart.model import MAX_LENGTH, build_micro_model, micro_tokenizer, vocabulary
from alignment.quickstart.records import preference_records, sft_records, suite_items
from alignment.quickstart.world import normalised

SHARDS = 3


@pytest.fixture(scope="module")
def tokenizer():
    return micro_tokenizer(MAX_LENGTH)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    build_micro_model(folder, 0)
    return folder


@pytest.fixture(scope="module")
def texts():
    """Every text that seed 1 generates; the vocabulary is drawn from seed 0."""
    rows = [record["messages"] for record in sft_records(1)]
    rows += [
        [*pair["prompt"], *pair["chosen"], *pair["rejected"]]
        for shard in range(SHARDS)
        for pair in preference_records(shard, 1)
    ]
    texts = {message["content"] for messages in rows for message in messages}
    texts |= {f"Question: {item['question']}\nAnswer:" for item in suite_items("gsm8k", 1)}
    texts |= {item["answer"] for item in suite_items("gsm8k", 1)}
    texts |= {item["prompt"] for item in suite_items("ifeval", 1)}
    texts |= {turn for item in suite_items("mt_bench", 1) for turn in item["turns"]}
    return sorted(texts)


def file_hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_seed_gives_the_same_bytes_and_another_seed_other_weights(checkpoint, tmp_path):
    build_micro_model(tmp_path / "again", 0)
    build_micro_model(tmp_path / "other", 1)
    for path in checkpoint.iterdir():
        assert file_hash(path) == file_hash(tmp_path / "again" / path.name), path.name
    assert file_hash(checkpoint / "model.safetensors") != file_hash(tmp_path / "other" / "model.safetensors")
    assert file_hash(checkpoint / "tokenizer.json") == file_hash(tmp_path / "other" / "tokenizer.json")


def test_building_leaves_the_callers_random_state_alone(tmp_path):
    import torch

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    build_micro_model(tmp_path / "micro", 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_checkpoint_loads_as_any_causal_model_and_generates(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.dtype == torch.float32
    assert model.num_parameters() < 500_000
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    ids = tokenizer("Write a line.", return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert output.shape == (1, ids.shape[1] + 3)


def test_the_saved_tokenizer_is_the_built_one(checkpoint, tokenizer):
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(checkpoint)
    text = "Write a line about the red fox in the barn.\n#### 12"
    assert saved(text).input_ids == tokenizer(text).input_ids
    assert saved.chat_template == tokenizer.chat_template
    assert (checkpoint / "chat_template.jinja").is_file()


def test_all_generated_text_round_trips_without_unknown_tokens(tokenizer, texts):
    for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_words_of_every_seed_are_single_tokens(tokenizer, texts):
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]
    assert sum(lengths) < 1.4 * sum(len(normalised(text).split()) for text in texts)


def test_any_ascii_text_round_trips(tokenizer):
    text = "Zebra  quux\t9876543 ~`{}[]|\\ <s <<<x>>> ###\n\nend "
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_an_unknown_character_becomes_one_unknown_token(tokenizer):
    known, unknown = (tokenizer(text, add_special_tokens=False).input_ids for text in ("fox.", "foxé."))
    assert unknown.count(tokenizer.unk_token_id) == 1
    assert [index for index in unknown if index != tokenizer.unk_token_id] == known


def test_plain_text_starts_with_one_bos(tokenizer):
    ids = tokenizer("The fox.").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_no_token_stands_twice_in_the_vocabulary():
    assert len(set(vocabulary())) == len(vocabulary())


def test_the_templated_prompt_is_a_prefix_of_prompt_and_answer(tokenizer):
    for record in sft_records(0)[:200]:
        messages = record["messages"]
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole == prompt + messages[-1]["content"] + tokenizer.eos_token
        prompt_ids, whole_ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, whole))
        assert whole_ids[: len(prompt_ids)] == prompt_ids
        assert whole_ids.count(tokenizer.bos_token_id) == 1
        assert whole_ids[-1] == tokenizer.eos_token_id


def test_every_conversation_fits_the_context_with_room_for_an_answer(tokenizer):
    longest = max(
        len(tokenizer(tokenizer.apply_chat_template(r["messages"], tokenize=False), add_special_tokens=False).input_ids)
        for r in sft_records(2)
    )
    assert longest + 48 <= MAX_LENGTH


def test_the_chat_template_refuses_unknown_roles(tokenizer):
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="roles are system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
